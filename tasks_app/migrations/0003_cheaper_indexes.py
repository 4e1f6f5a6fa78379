import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('tasks_app', '0002_leases_keys_limits'),
    ]

    operations = [
        # What each claim and each outcome would write to, and nothing reads: an index for LIKE (Django makes one for
        # every unique text), one of NULLs, and one of keys that are NULL.
        migrations.RunSQL(
            "DROP INDEX IF EXISTS tasks_app_taskrecord_task_id_54d29985_like",
            "CREATE INDEX tasks_app_taskrecord_task_id_54d29985_like"
            " ON tasks_app_taskrecord (task_id varchar_pattern_ops)",
        ),
        migrations.RemoveConstraint(
            model_name='taskrecord',
            name='task_unique_unfinished',
        ),
        migrations.AlterField(
            model_name='taskrecord',
            name='replay_of',
            field=models.ForeignKey(db_index=False, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='replays', to='tasks_app.taskrecord'),
        ),
        migrations.AddIndex(
            model_name='taskrecord',
            index=models.Index(condition=models.Q(('replay_of__isnull', False)), fields=['replay_of'], name='task_replay'),
        ),
        migrations.AddConstraint(
            model_name='taskrecord',
            constraint=models.UniqueConstraint(condition=models.Q(('state__in', ('PENDING', 'STARTED', 'RETRY')), ('unique_key__isnull', False), ('unique_until__isnull', True)), fields=('unique_key',), name='task_unique_unfinished'),
        ),
    ]
