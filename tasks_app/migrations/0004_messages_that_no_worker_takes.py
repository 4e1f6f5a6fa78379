from django.db import migrations, models


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
    ]
