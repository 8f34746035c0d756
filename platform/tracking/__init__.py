"""Everything that talks to MLflow: runs here, registered encoders in :mod:`.registry`.

Nothing outside this folder imports ``mlflow`` or holds a client of it.
"""

from dynaflip.platform.tracking.runs import *  # noqa: F403
