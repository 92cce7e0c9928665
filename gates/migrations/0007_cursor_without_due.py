"""A quiet slot moves `due_at` of every cursor: without an index on it, that writes a new row version into the same page only."""

from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("gates", "0006_quiet")]
    operations = [migrations.RemoveIndex(model_name="cursor", name="cursor_due")]
