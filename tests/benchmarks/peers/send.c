/* The limit of the operating system: one send(2) per delivery, and nothing else. Clients connect like WebSocket clients;
 * the body of a POST is sent to each of them as one text frame, `X-Repeat` times. Usage: send PORT
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST 20000

static int clients[MOST], size;
static char request[1 << 20], frame[(1 << 20) + 10];

static size_t make_frame(const char *body, size_t length)
{
    size_t header = length < 126 ? 2 : length < 65536 ? 4 : 10;
    frame[0] = (char)0x81;
    frame[1] = header == 2 ? length : header == 4 ? 126 : 127;
    for (size_t i = 2; i < header; i++) frame[i] = length >> 8 * (header - 1 - i);
    memcpy(frame + header, body, length);
    return header + length;
}

/* Reads one request; returns 0 if there is nothing more to read from this connection. */
static int serve(int fd)
{
    static const char agreed[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";
    static const char accepted[] = "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n";
    size_t got = 0, whole = 0, head = 0;
    while (!whole || got < whole) {
        ssize_t n = recv(fd, request + got, sizeof request - 1 - got, 0);
        if (n <= 0) {
            close(fd);
            return 0;
        }
        request[got += n] = 0;
        char *end = strstr(request, "\r\n\r\n"), *length = strcasestr(request, "\ncontent-length:");
        if (!whole && end) {
            head = end + 4 - request;
            whole = head + (length && length < end ? strtoul(length + 16, NULL, 10) : 0);
        }
    }
    if (*request == 'G') {
        clients[size++] = fd;
        send(fd, agreed, sizeof agreed - 1, MSG_NOSIGNAL);
        return 0;
    }
    char *repeat = strcasestr(request, "\nx-repeat:");
    long times = repeat && repeat < request + head ? atol(repeat + 10) : 1;
    size_t length = make_frame(request + head, whole - head);
    send(fd, accepted, sizeof accepted - 1, MSG_NOSIGNAL);
    while (times--)
        for (int i = 0; i < size; i++)
            if (send(clients[i], frame, length, MSG_NOSIGNAL) < 0) exit(0);
    return 1;
}

static void watch(int loop, int operation, int fd)
{
    struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(loop, operation, fd, &e);
}

int main(int argc, char **argv)
{
    int one = 1, loop = epoll_create1(0), listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event ready[256];
    at.sin_port = htons(atoi(argv[argc - 1]));
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) < 0 || listen(listener, 4096) < 0) return 1;
    watch(loop, EPOLL_CTL_ADD, listener);
    for (;;) {
        int n = epoll_wait(loop, ready, sizeof ready / sizeof *ready, -1);
        for (int i = 0; i < n; i++) {
            int fd = ready[i].data.fd;
            if (fd != listener) {
                if (!serve(fd)) watch(loop, EPOLL_CTL_DEL, fd);
                continue;
            }
            fd = accept(listener, NULL, NULL);
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            watch(loop, EPOLL_CTL_ADD, fd);
        }
    }
}
