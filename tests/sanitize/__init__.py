"""AddressSanitizer and UBSan over the compiled modules: ``python -m tests.sanitize``."""
