from django.db import migrations


class Migration(migrations.Migration):

    dependencies = [
        ('tasks_app', '0006_queue_readers'),
    ]

    operations = [
        # An index for LIKE, which Django makes for a key that is a text, and nothing reads. It makes it when a migration
        # is over: so 0005, which made the table, could not drop it.
        migrations.RunSQL(
            "DROP INDEX IF EXISTS tasks_app_taskstep_task_id_cd6b4e8e_like",
            migrations.RunSQL.noop,
        ),
    ]
