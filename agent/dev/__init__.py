"""The platform of `garrison up`: a controller and a gateway, so that one machine can run apps with one agent.

They take the place of the Cloud Controller and of gorouter. They exchange messages with the agent only over the bus and HTTP, in
the format of docs/protocol.md. The agent imports none of these modules.

placement.py   chooses the host of an instance or a staging: pure
records.py     the apps, what is known of their instances, and what to start and stop: pure but for one file
pushes.py      a push: settings, package and droplet, which become the app together or not at all
stagings.py    one staging over the bus: a host, a request, two replies
messages.py    the messages that the controller publishes: pure
changes.py     the count of the controller's changes, and the wait for the next one
controller.py  receives adverts, heartbeats and exits; stages pushes; starts and stops instances
api.py         the controller's HTTP server: for the commands, and for the agent (packages, droplets, caches)
gateway.py     forwards HTTP requests by host name to the endpoints of router.register
children.py    the programs that `garrison up` starts: nats-server and the agent
host.py        checks whether this host can run containers
up.py          starts and stops all of these
demo.py        `make demo`; traces.py finds what a `garrison up` has left on the host
"""
