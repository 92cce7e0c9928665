"""Who answered and who wrote a version outlive the account: web may delete a person, and no fact is edited for it."""

import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("gates", "0012_cursor_rules"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]
    operations = [
        migrations.AlterField(
            model_name="decision",
            name="by_user",
            field=models.ForeignKey(
                db_constraint=False,
                help_text="Outlives the account: an answer is never edited, not even by a deletion.",
                null=True,
                on_delete=django.db.models.deletion.DO_NOTHING,
                related_name="+",
                to=settings.AUTH_USER_MODEL,
            ),
        ),
        migrations.AlterField(
            model_name="policyversion",
            name="author_user",
            field=models.ForeignKey(
                blank=True,
                db_constraint=False,
                help_text="Outlives the account, so that its number goes on to say who the second person is not.",
                null=True,
                on_delete=django.db.models.deletion.DO_NOTHING,
                related_name="+",
                to=settings.AUTH_USER_MODEL,
            ),
        ),
    ]
