from django.db import migrations

# A DELETE by SQL takes the runs and the backfills along, as one by the ORM does; and a time that Python cannot hold, such
# as `infinity`, is refused: no row that came by SQL may keep the others from being read.
FOR_SQL = """
DO $$
DECLARE key record;
BEGIN
    FOR key IN
        SELECT con.conname, con.conrelid::regclass AS child, con.confrelid::regclass AS parent, att.attname,
            CASE WHEN att.attname = 'backfill_id' THEN 'SET NULL' ELSE 'CASCADE' END AS action
        FROM pg_constraint AS con JOIN pg_attribute AS att ON att.attrelid = con.conrelid AND att.attnum = con.conkey[1]
        WHERE con.contype = 'f' AND (
            con.confrelid = 'scheduling_app_schedule'::regclass OR con.confrelid = 'scheduling_app_backfill'::regclass
        )
    LOOP
        EXECUTE format(
            'ALTER TABLE %s DROP CONSTRAINT %I, ADD CONSTRAINT %I FOREIGN KEY (%I) REFERENCES %s ON DELETE %s '
            'DEFERRABLE INITIALLY DEFERRED',
            key.child, key.conname, key.conname, key.attname, key.parent, key.action
        );
    END LOOP;
END $$;

ALTER TABLE scheduling_app_schedule ADD CONSTRAINT schedule_times_in_range CHECK (
    coalesce(run_at, created_at) BETWEEN '0001-01-02' AND '9999-12-30'
    AND coalesce(start_at, created_at) BETWEEN '0001-01-02' AND '9999-12-30'
    AND coalesce(end_at, created_at) BETWEEN '0001-01-02' AND '9999-12-30'
);
ALTER TABLE scheduling_app_window ADD CONSTRAINT window_times_in_range CHECK (
    coalesce(start_at, '2000-01-01') BETWEEN '0001-01-02' AND '9999-12-30'
    AND coalesce(end_at, '2000-01-01') BETWEEN '0001-01-02' AND '9999-12-30'
);
"""
NOT_FOR_SQL = """
ALTER TABLE scheduling_app_schedule DROP CONSTRAINT schedule_times_in_range;
ALTER TABLE scheduling_app_window DROP CONSTRAINT window_times_in_range;
"""


class Migration(migrations.Migration):
    dependencies = [("scheduling_app", "0003_policies")]
    operations = [migrations.RunSQL(FOR_SQL, NOT_FOR_SQL)]
