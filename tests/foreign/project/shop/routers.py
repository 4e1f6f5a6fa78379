#: Read where they are written: who signs in is to be signed in at once.
AT_ONCE = {"accounts", "auth", "sessions", "contenttypes", "admin"}


class ReadsFromReplica:
    """As Django's documentation has it: writes to the primary, reads from a replica, migrations on the primary."""

    def db_for_read(self, model, **hints):
        return "default" if model._meta.app_label in AT_ONCE else "replica"

    def db_for_write(self, model, **hints):
        return "default"

    def allow_relation(self, one, other, **hints):
        return True

    def allow_migrate(self, db, app_label, **hints):
        return db == "default"
