"""Plain twins of the compiled modules: the specification, the oracle of the tests and the yardstick of bench/."""
