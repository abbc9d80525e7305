"""Side processes: what the supervisor forks and watches beside its workers, and can lose without losing a task."""
