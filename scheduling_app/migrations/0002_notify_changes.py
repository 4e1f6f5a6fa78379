from django.db import migrations

# Whatever changes a schedule (the admin, QuerySet.update(), SQL), a scheduler learns of it from here. (This is how it
# began: as it is now, it stands in ledger/trigger.sql.)
TRIGGER = """
CREATE FUNCTION scheduling_app_schedule_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.changed_at := clock_timestamp();
    NEW.next_fire_at := NULL;
    NEW.problem := '';
    PERFORM pg_notify('schedules_changed', '');
    RETURN NEW;
END $$;

CREATE TRIGGER schedule_inserted BEFORE INSERT ON scheduling_app_schedule
    FOR EACH ROW EXECUTE FUNCTION scheduling_app_schedule_changed();

CREATE TRIGGER schedule_updated BEFORE UPDATE ON scheduling_app_schedule
    FOR EACH ROW WHEN (
        (OLD.enabled, OLD.kind, OLD.cron, OLD.every, OLD.unit, OLD.run_at, OLD.timezone, OLD.start_at, OLD.end_at)
        IS DISTINCT FROM
        (NEW.enabled, NEW.kind, NEW.cron, NEW.every, NEW.unit, NEW.run_at, NEW.timezone, NEW.start_at, NEW.end_at)
    ) EXECUTE FUNCTION scheduling_app_schedule_changed();
"""
UNDO = """
DROP TRIGGER schedule_updated ON scheduling_app_schedule;
DROP TRIGGER schedule_inserted ON scheduling_app_schedule;
DROP FUNCTION scheduling_app_schedule_changed;
"""


class Migration(migrations.Migration):
    dependencies = [("scheduling_app", "0001_initial")]
    operations = [migrations.RunSQL(TRIGGER, UNDO)]
