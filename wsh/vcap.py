"""The user that stacks, containers and droplets agree on: vcap, as the platform has always called it.

The number stands in the passwd file of every stack, on the files of every droplet layer, and in the jobs of every
container, so it is written down once, in the lowest package.
"""

from __future__ import annotations

from typing import Final

VCAP_ID: Final = 2000
"""Its user and group id inside a container."""
VCAP_HOME: Final = "/home/vcap"
"""Its home, inside a container."""
