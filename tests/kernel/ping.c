/* One echo request by the kernel's echo socket (icmp(7)), as iputils' ping sends it. Exit status: 0 answered, 1 not, 2 no such socket. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>

int main(int argc, char **argv)
{
    struct sockaddr_in to = {.sin_family = AF_INET};
    if (argc != 3 || inet_pton(AF_INET, argv[1], &to.sin_addr) != 1)
        return 3;
    int fd = socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);
    if (fd < 0) {
        perror("socket");
        return 2;
    }
    struct timeval patience = {.tv_sec = atoi(argv[2])};
    struct icmphdr request = {.type = ICMP_ECHO}, answer;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) || connect(fd, (void *)&to, sizeof to) ||
        send(fd, &request, sizeof request, 0) != sizeof request || recv(fd, &answer, sizeof answer, 0) != sizeof answer) {
        perror("echo");
        return 1;
    }
    return answer.type == ICMP_ECHOREPLY ? 0 : 1;
}
