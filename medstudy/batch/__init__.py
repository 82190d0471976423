"""From a study's folder to executed notebooks."""

import sys

# on import jsonschema compiles a grammar of web addresses, 0.9 s a job, that no notebook needs
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
