/* The load of the fan-out benchmark: it opens streams, publishes events, and checks what it receives.
 *
 *     load PORT [PUBLISHER]
 *
 * Events are published at the port PUBLISHER, or at that of the streams.
 *
 * A command is a line on stdin, its result one line of JSON on stdout. After {"error": ...} the process ends.
 *
 *     open N PATH WINDOW FIRST EVENTS ID   open N streams, at most WINDOW at a time; each must receive EVENTS events
 *                                          from number FIRST; ID is sent as Last-Event-ID, "-" for none
 *     publish ROUNDS N SIZE POSTS          publish N events of SIZE bytes in POSTS (1 or N) requests; a round ends
 *                                          when every stream that is read has received them
 *     rate HERTZ COUNT SIZE SKIP           publish one event at a time at a fixed rate; measures the latencies of all
 *                                          streams but the first SKIP, and of the last stream that receives an event
 *     stop N                               stop reading the first N streams
 *     close N                              close the first N streams, which are the oldest
 *     id NUMBER                            the ID of an event on the first stream
 *     collect                              POST /collect, and ignore the status
 *
 * The data of an event is "number stamp size xxx...". Every stream must receive every number once, in order, complete.
 */
#define _GNU_SOURCE
#include "stream.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { READ_SIZE = 1 << 18, TIMEOUT = 60, CONTROL = -1, TIMER = -2 };

static char chunk[READ_SIZE];
static int port, epoll, control, timer, opened;
static uint64_t published, pending_responses;

static uint64_t now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000u + at.tv_nsec;
}

static uint64_t own_cpu(void) {
    struct timespec at;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &at);
    return (uint64_t)at.tv_sec * 1000000000u + at.tv_nsec;
}

static int connect_to(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        fail("connect: %s", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static void watch(int fd, int index) {
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = (uint64_t)(int64_t)index};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0)
        fail("epoll_ctl: %s", strerror(errno));
}

static void write_all(const char *data, size_t size) {
    while (size) {
        ssize_t sent = send(control, data, size, MSG_NOSIGNAL);
        if (sent < 0)
            fail("publish: %s", strerror(errno));
        data += sent, size -= sent;
    }
}

/* Count the responses to POST requests, and skip their bodies. */
static void read_responses(void) {
    static char buffer[1 << 16];
    static size_t filled, body;
    ssize_t got = recv(control, buffer + filled, sizeof buffer - 1 - filled, MSG_DONTWAIT);
    if (got <= 0) {
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        fail("the server closed the connection of the publisher");
    }
    filled += got;
    for (;;) {
        size_t skipped = filled < body ? filled : body;
        memmove(buffer, buffer + skipped, filled -= skipped);
        body -= skipped;
        buffer[filled] = 0;
        char *end = strstr(buffer, "\r\n\r\n");
        if (body || !end)
            return;
        *end = 0;
        if (strncmp(buffer, "HTTP/1.1 2", 10) && strncmp(buffer, "HTTP/1.1 404", 12))
            fail("the response to a publish was %.12s", buffer);
        char *length = strcasestr(buffer, "\r\ncontent-length:");
        body = length ? strtoul(length + 17, NULL, 10) : 0;
        size_t head = end + 4 - buffer;
        memmove(buffer, buffer + head, filled -= head);
        pending_responses--;
    }
}

/* Handle the events of one epoll_wait. Returns whether the timer expired. */
static int poll_once(int milliseconds) {
    struct epoll_event ready[512];
    int ticked = 0, count = epoll_wait(epoll, ready, 512, milliseconds);
    for (int i = 0; i < count; i++) {
        int index = (int)(int64_t)ready[i].data.u64;
        if (index == CONTROL) {
            read_responses();
        } else if (index == TIMER) {
            uint64_t times;
            ticked = read(timer, &times, sizeof times) > 0;
        } else {
            struct stream *s = &streams[index];
            ssize_t got = recv(s->fd, chunk, READ_SIZE, MSG_DONTWAIT);
            if (got > 0)
                feed(s, chunk, got, now());
            else if (got == 0 || (errno != EAGAIN && errno != EINTR))
                fail("the server closed stream %d", index);
        }
    }
    return ticked;
}

static void open_streams(int count, const char *path, int window, uint64_t first, uint64_t events, const char *id) {
    static char request[1024];
    int size = snprintf(request, sizeof request,
                        "GET %s HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n%s%s%s\r\n", path,
                        *id == '-' ? "" : "Last-Event-ID: ", *id == '-' ? "" : id, *id == '-' ? "" : "\r\n");
    uint64_t started = now(), cpu = own_cpu(), end = started + TIMEOUT * 1000000000ull;
    int last = opened + count;
    if (last > STREAMS)
        fail("more than %d streams", STREAMS);
    goal = events ? first + events : 0;
    while (opened < last || opening) {
        while (opened < last && opening < window) {
            struct stream *s = &streams[opened];
            *s = (struct stream){.fd = connect_to(port), .read = 1, .opening = 1, .next = events ? first : published};
            watch(s->fd, opened++);
            opening++;
            if (send(s->fd, request, size, MSG_NOSIGNAL) != size)
                fail("request: %s", strerror(errno));
        }
        poll_once(1000);
        if (now() > end)
            fail("%d streams did not open", opening);
    }
    printf("{\"ns\": %lu, \"cpu\": %lu}\n", now() - started, own_cpu() - cpu);
}

static void post(int events, int size, int posts) {
    static char *buffer;
    static size_t room;
    size_t need = (size_t)events * (size + 1) + posts * 256 + 256, filled = 0;
    if (need > room)
        buffer = realloc(buffer, room = need);
    int each = events / posts;
    for (int p = 0; p < posts; p++) {
        filled += sprintf(buffer + filled,
                          "POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n"
                          "Content-Length: %d\r\n\r\n",
                          each * (size + 1) - 1);
        for (int e = 0; e < each; e++) {
            int written = sprintf(buffer + filled, "%lu %lu %u ", published++, now(), size);
            memset(buffer + filled + written, 'x', size - written);
            filled += size;
            if (e < each - 1)
                buffer[filled++] = '\n';
        }
    }
    pending_responses += posts;
    write_all(buffer, filled);
}

static void expect(uint64_t more) {
    target = published + more;
    waiting = 0;
    for (int i = 0; i < opened; i++)
        waiting += streams[i].read && streams[i].next < target;
}

static void wait_for_all(void) {
    uint64_t end = now() + TIMEOUT * 1000000000ull;
    while (waiting || pending_responses) {
        poll_once(1000);
        if (now() > end)
            fail("%lu streams did not receive their events, %lu requests got no response", waiting, pending_responses);
    }
}

static void publish(int rounds, int events, int size, int posts) {
    uint64_t started = now(), cpu = own_cpu(), before = deliveries;
    for (int i = 0; i < rounds; i++) {
        expect(events);
        post(events, size, posts);
        wait_for_all();
    }
    printf("{\"deliveries\": %lu, \"ns\": %lu, \"cpu\": %lu}\n", deliveries - before, now() - started, own_cpu() - cpu);
}

static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void rate(int hertz, int count, int size, int skipped) {
    uint64_t started = now(), cpu = own_cpu(), before = deliveries, every = 1000000000u / hertz;
    struct itimerspec spec = {.it_value = {.tv_nsec = 1}, .it_interval = {every / 1000000000u, every % 1000000000u}};
    latencies = realloc(latencies, (latency_room = (uint64_t)count * opened) * sizeof *latencies);
    latency_count = 0, skip = skipped;
    expect(count);
    timed_from = published, timed = count, readers = waiting;
    arrivals = calloc(count, sizeof *arrivals);
    last = calloc(count, sizeof *last);
    timerfd_settime(timer, 0, &spec, NULL);
    for (int sent = 0; sent < count;)
        if (poll_once(1000))
            post(1, size, 1), sent++;
    timerfd_settime(timer, 0, &(struct itimerspec){0}, NULL);
    wait_for_all();
    uint64_t ns = now() - started, used = own_cpu() - cpu;
    latency_room = 0, timed = 0;
    if (!latency_count)
        fail("no stream received an event");
    qsort(latencies, latency_count, sizeof *latencies, ascending);
    qsort(last, count, sizeof *last, ascending);
    printf("{\"deliveries\": %lu, \"ns\": %lu, \"cpu\": %lu, \"p50\": %u, \"p99\": %u, \"max\": %u, "
           "\"last50\": %u, \"last99\": %u}\n",
           deliveries - before, ns, used, latencies[latency_count / 2],
           latencies[latency_count * 99 / 100], latencies[latency_count - 1], last[count / 2], last[count * 99 / 100]);
    free(arrivals);
    free(last);
}

static void stop(int count) {
    for (int i = 0; i < count && i < opened; i++) {
        epoll_ctl(epoll, EPOLL_CTL_DEL, streams[i].fd, NULL);
        streams[i].read = 0;
    }
    printf("{}\n");
}

static void close_streams(int count) {
    if (count > opened)
        fail("only %d streams are open", opened);
    for (int i = 0; i < count; i++)
        close(streams[i].fd);
    memmove(streams, streams + count, (opened -= count) * sizeof *streams);
    for (int i = 0; i < opened; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u64 = i};
        if (streams[i].read && epoll_ctl(epoll, EPOLL_CTL_MOD, streams[i].fd, &event) < 0)
            fail("epoll_ctl: %s", strerror(errno));
    }
    printf("{}\n");
}

int main(int argc, char **argv) {
    static char line[4096], path[256], id[256];
    int a, b, c, d;
    uint64_t first, events;
    if (argc != 2 && argc != 3)
        return 2;
    port = atoi(argv[1]);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    control = connect_to(argc == 3 ? atoi(argv[2]) : port);
    watch(control, CONTROL);
    watch(timer, TIMER);
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "open %d %255s %d %lu %lu %255s", &a, path, &b, &first, &events, id) == 6) {
            open_streams(a, path, b, first, events, id);
        } else if (sscanf(line, "publish %d %d %d %d", &a, &b, &c, &d) == 4) {
            publish(a, b, c, d);
        } else if (sscanf(line, "rate %d %d %d %d", &a, &b, &c, &d) == 4) {
            rate(a, b, c, d);
        } else if (sscanf(line, "stop %d", &a) == 1) {
            stop(a);
        } else if (sscanf(line, "close %d", &a) == 1) {
            close_streams(a);
        } else if (sscanf(line, "id %d", &a) == 1) {
            printf("{\"id\": \"%s\"}\n", ids[a % IDS]);
        } else if (!strncmp(line, "collect", 7)) {
            static const char request[] = "POST /collect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
            pending_responses++;
            write_all(request, sizeof request - 1);
            wait_for_all();
            printf("{}\n");
        } else
            fail("unknown command");
        fflush(stdout);
    }
    return 0;
}
