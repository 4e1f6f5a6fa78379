-- Whatever changes a schedule (the admin, QuerySet.update(), SQL), schedulers learn of it from here, and the change has
-- its time: planning.plan_changed computes the next one. What was due, and no scheduler had come to, has its row all the
-- same; what was planned is kept, so that each time that was missed by then can be told by the timing that stood.
--
-- The newest migration that concerns it runs this file, and it alone: a change here comes with a migration that does,
-- from which the operation is taken out of the one before (now 0005).
CREATE OR REPLACE FUNCTION scheduling_app_schedule_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.changed_at := clock_timestamp();
    NEW.next_fire_at := NULL;
    NEW.problem := '';
    IF TG_OP = 'INSERT' OR OLD.enabled <> NEW.enabled THEN
        NEW.switched_at := NEW.changed_at;
    END IF;
    IF NEW.enabled THEN
        NEW.note := '';
    END IF;
    IF TG_OP = 'UPDATE' AND OLD.enabled AND OLD.next_fire_at <= NEW.changed_at THEN
        NEW.missed := jsonb_build_object(
            'kind', OLD.kind, 'cron', OLD.cron, 'every', OLD.every, 'unit', OLD.unit, 'run_at', OLD.run_at,
            'timezone', OLD.timezone, 'start_at', OLD.start_at, 'end_at', OLD.end_at, 'created_at', OLD.created_at,
            'first', OLD.next_fire_at, 'until', NEW.changed_at, 'is_paused', NOT NEW.enabled
        );
        INSERT INTO scheduling_app_schedulerun (schedule_id, scheduled_for, fired_at, outcome, reason, detail) VALUES (
            OLD.id, OLD.next_fire_at, NEW.changed_at, 'skipped', 'misfire',
            CASE WHEN NEW.enabled THEN 'Its timing was changed' ELSE 'It was paused' END || ' before it fired.'
        ) ON CONFLICT (schedule_id, scheduled_for) DO NOTHING;
    END IF;
    PERFORM pg_notify('schedules_changed', '');
    RETURN NEW;
END $$;

DROP TRIGGER IF EXISTS schedule_inserted ON scheduling_app_schedule;
CREATE TRIGGER schedule_inserted BEFORE INSERT ON scheduling_app_schedule
    FOR EACH ROW EXECUTE FUNCTION scheduling_app_schedule_changed();

DROP TRIGGER IF EXISTS schedule_updated ON scheduling_app_schedule;
CREATE TRIGGER schedule_updated BEFORE UPDATE ON scheduling_app_schedule
    FOR EACH ROW WHEN (
        (OLD.enabled, OLD.kind, OLD.cron, OLD.every, OLD.unit, OLD.run_at, OLD.timezone, OLD.start_at, OLD.end_at,
            OLD.max_runs)
        IS DISTINCT FROM
        (NEW.enabled, NEW.kind, NEW.cron, NEW.every, NEW.unit, NEW.run_at, NEW.timezone, NEW.start_at, NEW.end_at,
            NEW.max_runs)
    ) EXECUTE FUNCTION scheduling_app_schedule_changed();
