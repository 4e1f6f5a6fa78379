from importlib import import_module

import django.core.validators
import django.db.models.deletion
import django.db.models.functions.datetime
import scheduling_app.models
import tasks_app.models
from django.db import migrations, models


before = import_module("scheduling_app.migrations.0002_notify_changes")

# As 0002 has it, and: since when it is on, or paused; a resumed one needs no note any more; a higher `max_runs` counts;
# a time that was due, and that no scheduler had come to yet, has its row all the same. (Since 0005: ledger/trigger.sql.)
TRIGGER = """
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
        INSERT INTO scheduling_app_schedulerun (schedule_id, scheduled_for, fired_at, outcome, reason, detail) VALUES (
            OLD.id, OLD.next_fire_at, NEW.changed_at, 'skipped', 'misfire',
            CASE WHEN NEW.enabled THEN 'Its timing was changed' ELSE 'It was paused' END || ' before it fired.'
        ) ON CONFLICT (schedule_id, scheduled_for) DO NOTHING;
    END IF;
    PERFORM pg_notify('schedules_changed', '');
    RETURN NEW;
END $$;

DROP TRIGGER schedule_updated ON scheduling_app_schedule;
CREATE TRIGGER schedule_updated BEFORE UPDATE ON scheduling_app_schedule
    FOR EACH ROW WHEN (
        (OLD.enabled, OLD.kind, OLD.cron, OLD.every, OLD.unit, OLD.run_at, OLD.timezone, OLD.start_at, OLD.end_at,
            OLD.max_runs)
        IS DISTINCT FROM
        (NEW.enabled, NEW.kind, NEW.cron, NEW.every, NEW.unit, NEW.run_at, NEW.timezone, NEW.start_at, NEW.end_at,
            NEW.max_runs)
    ) EXECUTE FUNCTION scheduling_app_schedule_changed();
"""


def skip_overlaps(apps, schema_editor):
    """What had a limit of unfinished runs skipped what was above it."""
    apps.get_model("scheduling_app", "Schedule").objects.filter(max_instances__isnull=False).update(overlap="skip")


class Migration(migrations.Migration):

    dependencies = [
        ('scheduling_app', '0002_notify_changes'),
        ('tasks_app', '0002_leases_keys_limits'),
    ]

    operations = [
        migrations.CreateModel(
            name='Calendar',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(max_length=200, unique=True)),
                ('description', models.TextField(blank=True)),
                ('timezone', models.CharField(default=scheduling_app.models.default_timezone, max_length=64)),
            ],
            options={
                'ordering': ['name'],
            },
        ),
        migrations.CreateModel(
            name='Window',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('cron', models.CharField(blank=True, max_length=200)),
                ('minutes', models.PositiveIntegerField(blank=True, null=True, validators=[django.core.validators.MinValueValidator(1)])),
                ('start_at', models.DateTimeField(blank=True, null=True)),
                ('end_at', models.DateTimeField(blank=True, null=True)),
            ],
            options={
                'ordering': ['pk'],
            },
        ),
        migrations.AddField(
            model_name='schedule',
            name='blackout_action',
            field=models.CharField(choices=[('skip', 'Skip'), ('defer', "Run at the window's end")], default='skip', max_length=10),
        ),
        migrations.AddField(
            model_name='schedule',
            name='due_kwarg',
            field=models.CharField(blank=True, max_length=100),
        ),
        migrations.AddField(
            model_name='schedule',
            name='fired_count',
            field=models.PositiveIntegerField(db_default=0, default=0, editable=False),
        ),
        migrations.AddField(
            model_name='schedule',
            name='headers',
            field=tasks_app.models.JSONText(blank=True, default=dict),
        ),
        migrations.AddField(
            model_name='schedule',
            name='max_retries',
            field=models.PositiveSmallIntegerField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name='schedule',
            name='max_runs',
            field=models.PositiveIntegerField(blank=True, null=True, validators=[django.core.validators.MinValueValidator(1)]),
        ),
        migrations.AddField(
            model_name='schedule',
            name='note',
            field=models.CharField(blank=True, db_default='', default='', editable=False, max_length=500),
        ),
        migrations.AddField(
            model_name='schedule',
            name='overlap',
            field=models.CharField(choices=[('allow', 'Run beside it'), ('skip', 'Skip'), ('queue_one', 'Wait; one at most'), ('queue_all', 'Wait, each in its turn'), ('cancel', 'Cancel it, and run')], default='allow', max_length=10),
        ),
        migrations.AddField(
            model_name='schedule',
            name='owner',
            field=models.CharField(blank=True, db_default='', default='', editable=False, max_length=255),
        ),
        migrations.AddField(
            model_name='schedule',
            name='pause_after_failures',
            field=models.PositiveSmallIntegerField(blank=True, null=True, validators=[django.core.validators.MinValueValidator(1)]),
        ),
        migrations.AddField(
            model_name='schedule',
            name='retry_backoff',
            field=models.PositiveIntegerField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name='schedule',
            name='soft_time_limit',
            field=models.PositiveIntegerField(blank=True, null=True, validators=[django.core.validators.MinValueValidator(1)]),
        ),
        migrations.AddField(
            model_name='schedule',
            name='switched_at',
            field=models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False),
        ),
        migrations.AddField(
            model_name='schedule',
            name='time_limit',
            field=models.PositiveIntegerField(blank=True, null=True, validators=[django.core.validators.MinValueValidator(1)]),
        ),
        migrations.AlterField(
            model_name='schedule',
            name='catch_up',
            field=models.CharField(choices=[('latest', 'Run once, for the latest of them'), ('all', 'Run each of them, oldest first'), ('none', 'Run none of them')], default='latest', max_length=10),
        ),
        migrations.AlterField(
            model_name='schedule',
            name='expires_after',
            field=models.PositiveIntegerField(blank=True, null=True, validators=[django.core.validators.MinValueValidator(1)]),
        ),
        migrations.RunPython(skip_overlaps, migrations.RunPython.noop),
        migrations.AlterField(
            model_name='schedule',
            name='max_instances',
            field=models.PositiveSmallIntegerField(default=1, validators=[django.core.validators.MinValueValidator(1)]),
        ),
        migrations.AlterField(
            model_name='schedulerun',
            name='outcome',
            field=models.CharField(choices=[('fired', 'Fired'), ('skipped', 'Skipped'), ('waiting', 'Waiting')], max_length=10),
        ),
        migrations.AlterField(
            model_name='schedulerun',
            name='reason',
            field=models.CharField(choices=[('due', 'on time'), ('late', 'late'), ('caught up', 'caught up'), ('manual', 'run by hand'), ('backfill', 'backfilled'), ('misfire', 'missed'), ('overlap', 'an earlier run was unfinished'), ('blackout', 'in a blackout window'), ('paused', 'paused by failures'), ('limit', 'more than the limit'), ('invalid', 'its definition is at fault')], max_length=20),
        ),
        migrations.CreateModel(
            name='Backfill',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('start_at', models.DateTimeField()),
                ('end_at', models.DateTimeField()),
                ('which', models.CharField(choices=[('missing', 'Those that did not run'), ('failed', 'Those that failed'), ('all', 'All of them')], default='missing', max_length=10)),
                ('newest_first', models.BooleanField(default=False)),
                ('concurrency', models.PositiveSmallIntegerField(default=1, validators=[django.core.validators.MinValueValidator(1)])),
                ('state', models.CharField(choices=[('running', 'Running'), ('paused', 'Paused'), ('cancelled', 'Cancelled'), ('finished', 'Finished')], default='running', max_length=10)),
                ('total', models.PositiveIntegerField(default=0)),
                ('created_by', models.CharField(blank=True, max_length=150)),
                ('created_at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False)),
                ('finished_at', models.DateTimeField(editable=False, null=True)),
                ('schedule', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='backfills', to='scheduling_app.schedule')),
            ],
            options={
                'ordering': ['-pk'],
            },
        ),
        migrations.AddField(
            model_name='schedulerun',
            name='backfill',
            field=models.ForeignKey(db_index=False, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='runs', to='scheduling_app.backfill'),
        ),
        migrations.AddIndex(
            model_name='schedulerun',
            index=models.Index(condition=models.Q(('outcome', 'waiting')), fields=['schedule', 'scheduled_for'], name='run_waiting'),
        ),
        migrations.AddIndex(
            model_name='schedulerun',
            index=models.Index(condition=models.Q(('backfill__isnull', False)), fields=['backfill', 'scheduled_for'], name='run_of_backfill'),
        ),
        migrations.AddField(
            model_name='schedule',
            name='blackout',
            field=models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='schedules', to='scheduling_app.calendar'),
        ),
        migrations.AddField(
            model_name='window',
            name='calendar',
            field=models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='windows', to='scheduling_app.calendar'),
        ),
        migrations.AddIndex(
            model_name='backfill',
            index=models.Index(condition=models.Q(('state', 'running')), fields=['id'], name='backfill_running'),
        ),
        migrations.AddConstraint(
            model_name='window',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(models.Q(('cron', ''), _negated=True), ('end_at', None), ('minutes__gt', 0), ('start_at', None)), models.Q(('cron', ''), ('minutes', None), ('start_at__lt', models.F('end_at'))), _connector='OR'), name='window_complete'),
        ),
        migrations.AlterField(
            model_name='schedulerun',
            name='schedule',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='runs', to='scheduling_app.schedule'),
        ),
        migrations.AddIndex(
            model_name='schedule',
            index=models.Index(condition=models.Q(('owner', ''), _negated=True), fields=['owner'], name='schedule_owned'),
        ),
        migrations.RunSQL(TRIGGER, before.UNDO + before.TRIGGER),
        # Of this an index for LIKE, as Django makes one for every unique text: written with each run, and never read.
        migrations.RunSQL("DROP INDEX IF EXISTS scheduling_app_schedulerun_record_id_c9495206_like", migrations.RunSQL.noop),
    ]
