/* Sets up the container's side of the network by ioctl. This takes 0.2 ms; netlink from outside takes 10 ms. */
#include "launch.h"
#include <arpa/inet.h>
#include <net/route.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <linux/sockios.h>

/* <net/if.h> and <linux/if.h> clash under musl; only these two declarations are needed. */
struct interface_request {
    char name[16];
    union {
        struct sockaddr_in address;
        short flags;
        int value;
        char pad[24];
    } u;
};
struct arp_request {
    struct sockaddr_in address;
    struct sockaddr hardware;
    int flags;
    struct sockaddr netmask;
    char device[16];
};
enum { INTERFACE_UP = 1, ARP_COMPLETE = 2, ARP_PERMANENT = 4, ETHERNET = 1 };

/* A missing file means that the kernel was built without the feature. */
static void set(const char *name, const char *value)
{
    scoped_fd int fd = open(name, O_WRONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return;
    if (fd < 0 || write_all(fd, value, strlen(value)))
        die("set", name);
}

void net_settings(const struct plan *plan)
{
    /* For interfaces that are made from now on: eth0. The loopback keeps its ::1, on which programs listen. */
    set("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    /* icmp(7): `ping` without a raw socket, which no job may have. Both ends must be mapped ids, and the last id is not. */
    char groups[32];
    (void)snprintf(groups, sizeof groups, "0 %u", plan->id_count - 2);
    set("/proc/sys/net/ipv4/ping_group_range", groups);
}

static void request(int fd, unsigned long code, struct interface_request *r, const char *what)
{
    if (ioctl(fd, code, r))
        die(what, r->name);
}

static struct sockaddr_in inet_address(const char *text)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    if (inet_pton(AF_INET, text, &address.sin_addr) != 1) {
        errno = EINVAL;
        die("address", text);
    }
    return address;
}

static void bring_up(int fd, const char *name)
{
    struct interface_request r = {0};
    (void)snprintf(r.name, sizeof r.name, "%s", name);
    request(fd, SIOCGIFFLAGS, &r, "flags of");
    r.u.flags |= INTERFACE_UP;
    request(fd, SIOCSIFFLAGS, &r, "bring up");
}

static void set_neighbour(int fd, const char *address, const char *mac)
{
    struct arp_request r = {.address = inet_address(address), .flags = ARP_COMPLETE | ARP_PERMANENT, .device = "eth0"};
    unsigned b[6];
    char rest;
    if (sscanf(mac, "%2x:%2x:%2x:%2x:%2x:%2x%c", b, b + 1, b + 2, b + 3, b + 4, b + 5, &rest) != 6) {
        errno = EINVAL;
        die("MAC address", mac);
    }
    r.hardware.sa_family = ETHERNET;
    for (int i = 0; i < 6; i++)
        r.hardware.sa_data[i] = (char)b[i];
    if (ioctl(fd, SIOCSARP, &r))
        die("permanent neighbour", address);
}

static void add_route(int fd, const char *network, const char *mask, const char *gateway)
{
    struct sockaddr_in to = inet_address(network), width = inet_address(mask), via = inet_address(gateway);
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY, .rt_dev = (char[]){"eth0"}};
    memcpy(&route.rt_dst, &to, sizeof to);
    memcpy(&route.rt_genmask, &width, sizeof width);
    memcpy(&route.rt_gateway, &via, sizeof via);
    if (ioctl(fd, SIOCADDRT, &route))
        die("route", network);
}

void net_configure(const struct plan *plan)
{
    scoped_fd int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket", "AF_INET");
    bring_up(fd, "lo");
    if (!plan->veth)
        return;
    struct interface_request r = {.name = "eth0"};
    r.u.value = (int)plan->eth0.mtu;
    request(fd, SIOCSIFMTU, &r, "mtu of");
    r.u.address = inet_address(plan->eth0.address);
    request(fd, SIOCSIFADDR, &r, "address of");
    struct sockaddr_in mask = {.sin_family = AF_INET};
    mask.sin_addr.s_addr = htonl(plan->eth0.prefix ? ~0U << (32 - plan->eth0.prefix) : 0);
    r.u.address = mask;
    request(fd, SIOCSIFNETMASK, &r, "netmask of");
    bring_up(fd, "eth0");
    set_neighbour(fd, plan->eth0.gateway, plan->eth0.gateway_mac);
    add_route(fd, "0.0.0.0", "0.0.0.0", plan->eth0.gateway);
    /* Otherwise multicast would use a MAC of its own instead of the gateway's, and a host whose rules are gone would accept it. */
    add_route(fd, "224.0.0.0", "240.0.0.0", plan->eth0.gateway);
}
