"""How the files of a source are written: names of columns, words for nothing, delimiter, decimal comma, encoding."""

import django.contrib.postgres.fields
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("telemetry", "0014_time_format")]
    operations = [
        migrations.AddField(
            model_name="source",
            name="columns",
            field=models.JSONField(
                blank=True, db_default={}, default=dict, help_text='What our columns are called there: {"users": "n"}.'
            ),
        ),
        migrations.AddField(
            model_name="source",
            name="null_words",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.CharField(max_length=20),
                blank=True,
                db_default=[],
                default=list,
                help_text="Texts that say nothing, such as NULL or \\N.",
            ),
        ),
        migrations.AddField(
            model_name="source",
            name="delimiter",
            field=models.CharField(
                blank=True,
                db_default="",
                default="",
                help_text="Of a CSV; empty: the one of , ; | tab that its head has.",
                max_length=1,
            ),
        ),
        migrations.AddField(
            model_name="source",
            name="decimal_comma",
            field=models.BooleanField(db_default=False, default=False, help_text="Numbers are written 1,5."),
        ),
        migrations.AddField(
            model_name="source",
            name="encoding",
            field=models.CharField(
                blank=True,
                choices=[
                    ("", "UTF-8"),
                    ("latin-1", "Latin 1, as Excel writes it in Western Europe"),
                    ("utf-16", "UTF-16, as Excel's Unicode text"),
                ],
                db_default="",
                default="",
                max_length=8,
            ),
        ),
    ]
