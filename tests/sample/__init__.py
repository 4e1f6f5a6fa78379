"""An app of a user's own, as EXTRA_APPS mounts one: its tasks are what the tests run."""
