import datetime

import django.db.models.functions.comparison
import django.db.models.lookups
from django.db import migrations, models

TIMES = (
    'eta', 'expires', 'created_at', 'publish_at', 'published_at', 'started_at', 'finished_at', 'lease_until',
    'cancel_at', 'unique_until', 'parked_at', 'slot_at',
)


class Migration(migrations.Migration):

    dependencies = [
        ('tasks_app', '0003_cheaper_indexes'),
    ]

    operations = [
        migrations.AddField(
            model_name='taskrecord',
            name='missed',
            field=models.PositiveSmallIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name='taskrecord',
            name='refused',
            field=models.PositiveSmallIntegerField(db_default=0, default=0),
        ),
        migrations.AddConstraint(
            model_name='taskrecord',
            constraint=models.CheckConstraint(condition=models.Q(django.db.models.lookups.GreaterThanOrEqual(django.db.models.functions.comparison.Least(*TIMES), datetime.datetime(1, 1, 3, 0, 0, tzinfo=datetime.timezone.utc)), django.db.models.lookups.LessThanOrEqual(django.db.models.functions.comparison.Greatest(*TIMES), datetime.datetime(9999, 12, 30, 0, 0, tzinfo=datetime.timezone.utc))), name='task_times_readable'),
        ),
    ]
