"""vcap, the user of apps in stacks, containers and droplets. The name is the platform's.

Its number is in the passwd file of every stack, on the files of every droplet layer, and in the jobs of every container.
It is defined only here, in the lowest package, so that they agree.
"""

from __future__ import annotations

from typing import Final

VCAP_ID: Final = 2000
"""Its user and group id inside a container."""
VCAP_HOME: Final = "/home/vcap"
"""Its home, inside a container."""
