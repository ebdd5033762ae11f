"""What `garrison up` adds so that one laptop is a platform: a controller, a gateway, and what runs them all.

To the agent these are the real Cloud Controller and the real gorouter: they speak with it over bus and HTTP
only, in the shapes of docs/protocol.md, and nothing of the agent imports them.

placement.py   which host gets an instance or a staging: pure
records.py     apps and what is known of their instances; what to start and stop: pure but for one file
pushes.py      a push: settings, package and droplet that become the app together or not at all
stagings.py    one staging over the bus: a host, a request, two replies
messages.py    what the controller says on the bus: pure
changes.py     the count of the controller's changes, for what waits for one
controller.py  receives adverts, heartbeats and exits; stages pushes; keeps desired state true
api.py         the controller's HTTP: for the CLI, and for the agent (packages, droplets, caches)
gateway.py     HTTP by host name to what router.register named
up.py          starts and stops the lot
demo.py        `make demo`
"""
