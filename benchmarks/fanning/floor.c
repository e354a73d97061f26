/* The floor of the fan-out benchmark: each event is sent to each socket with one call of send.
 *
 *     floor
 *
 * Prints its port. GET opens a stream. The lines of a POST to /publish are events, which are sent in one chunk.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { FDS = 65536, BUFFER = 1 << 22, FRAMES = 2 * BUFFER };

static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
static const char done[] = "HTTP/1.1 204 No Content\r\n\r\n";
static char buffer[BUFFER + 1], frames[FRAMES];
static size_t filled; /* bytes in the buffer of the publishing connection */
static int streams[FDS], slot[FDS], count, epoll;

static void remove_stream(int fd) {
    if (slot[fd]) {
        int index = slot[fd] - 1;
        streams[index] = streams[--count];
        slot[streams[index]] = index + 1;
        slot[fd] = 0;
    }
    close(fd);
}

static void publish(char *body, size_t size) {
    char *to = frames + 16, *end = body + size;
    while (body < end) {
        char *line = memchr(body, '\n', end - body);
        size_t length = (line ? line : end) - body;
        to = mempcpy(mempcpy(mempcpy(to, "data: ", 6), body, length), "\n\n", 2);
        body += length + 1;
    }
    char prefix[17];
    int digits = snprintf(prefix, sizeof prefix, "%lx\r\n", (unsigned long)(to - frames - 16));
    char *from = memcpy(frames + 16 - digits, prefix, digits);
    to = mempcpy(to, "\r\n", 2);
    for (int i = 0; i < count; i++)
        send(streams[i], from, to - from, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void serve(int fd) {
    ssize_t got = recv(fd, buffer + filled, BUFFER - filled, MSG_DONTWAIT);
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN)
            remove_stream(fd);
        return;
    }
    if (filled == 0 && !memcmp(buffer, "GET", 3)) { /* the load sends each GET in one segment */
        streams[count++] = fd;
        slot[fd] = count;
        send(fd, head, sizeof head - 1, MSG_NOSIGNAL);
        return;
    }
    filled += got;
    for (;;) {
        buffer[filled] = 0;
        char *end = strstr(buffer, "\r\n\r\n"), *length = strcasestr(buffer, "content-length:");
        size_t size = length ? strtoul(length + 15, NULL, 10) : 0, whole = end ? end + 4 - buffer + size : 0;
        if (!end || filled < whole)
            return;
        if (size)
            publish(end + 4, size);
        send(fd, done, sizeof done - 1, MSG_NOSIGNAL);
        memmove(buffer, buffer + whole, filled -= whole);
    }
}

int main(void) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    int listening = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listening, (struct sockaddr *)&address, sizeof address) || listen(listening, 4096))
        return 1;
    getsockname(listening, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    epoll = epoll_create1(0);
    epoll_ctl(epoll, EPOLL_CTL_ADD, listening, &(struct epoll_event){.events = EPOLLIN, .data.fd = listening});
    for (;;) {
        struct epoll_event ready[256];
        int found = epoll_wait(epoll, ready, 256, -1);
        for (int i = 0; i < found; i++) {
            int fd = ready[i].data.fd;
            if (fd != listening) {
                serve(fd);
                continue;
            }
            while ((fd = accept(listening, NULL, NULL)) >= 0 && fd < FDS) {
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLIN, .data.fd = fd});
            }
        }
    }
}
