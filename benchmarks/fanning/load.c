/* The load of the fan-out benchmark: one process that opens streams, has events published, and checks what arrives.
 *
 *     load PORT
 *
 * A command is a line on stdin, its answer one line of JSON on stdout; what goes wrong is {"error": ...} and the end.
 *
 *     open N PATH WINDOW FIRST EVENTS ID   open N streams, at most WINDOW of them on their way; each has to get EVENTS
 *                                          events from number FIRST on; ID is sent as Last-Event-ID, "-" is none
 *     publish ROUNDS N SIZE POSTS          N events of SIZE bytes in POSTS (1 or N) requests; the next round when
 *                                          every stream that is read has them all
 *     rate HERTZ COUNT SIZE SKIP           one event at a time on schedule, whoever has what; the times from publish
 *                                          to receive of all streams but the first SKIP
 *     stop N                               read the first N streams no more
 *     id NUMBER                            the id with which the first stream got an event
 *     collect                              POST /collect, whatever is answered
 *
 * The data of an event is "number stamp size xxx...": every stream must get every number once, in order, complete.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { STREAMS = 20000, LINE = 80, HEAD = 2048, PIECE = 1 << 18, IDS = 4096, PATIENCE = 60, CONTROL = -1, TIMER = -2 };
enum place { IN_HEAD, IN_SIZE, IN_CHUNK, AFTER_CHUNK, RAW };

struct stream {
    int fd;
    enum place place;
    int read, has_data, opening, line_size, head_size;
    char last;                    /* byte of the line */
    uint64_t chunk, next, number, stamp;
    char line[LINE], id[LINE];
    char *head;
};

static struct stream streams[STREAMS];
static char piece[PIECE], ids[IDS][LINE];
static int port, epoll, control, timer, opened, opening, failed_status;
static uint64_t published, target, goal_first, goal_events, waiting, deliveries, answers_due;
static uint32_t *latencies;
static uint64_t latency_count, latency_room;
static int recording, skip;

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    printf("{\"error\": \"");
    vprintf(format, arguments);
    printf("\"}\n");
    fflush(stdout);
    exit(1);
}

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

static int connected(void) {
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

/* An event is complete. */
static void received(struct stream *s, uint64_t at) {
    int index = s - streams;
    s->has_data = 0;
    if (s->number != s->next)
        fail("stream %d got event %lu in the place of %lu", index, s->number, s->next);
    s->next++;
    deliveries++;
    if (index == 0)
        memcpy(ids[s->number % IDS], s->id, LINE);
    if (recording && index >= skip && latency_count < latency_room)
        latencies[latency_count++] = (at - s->stamp) / 1000;
    if (s->opening) {
        if (s->next == goal_first + goal_events)
            s->opening = 0, opening--;
    } else if (s->next == target)
        waiting--;
}

static void line_ends(struct stream *s, uint64_t at) {
    int size = s->line_size;
    unsigned length;
    if (size && s->last == '\r')
        size--;
    s->line_size = 0;
    if (size == 0) {
        if (s->has_data)
            received(s, at);
        return;
    }
    int kept = size < LINE - 1 ? size : LINE - 1;
    s->line[kept] = 0;
    if (!memcmp(s->line, "data:", 5)) {
        char *value = s->line + 5 + (s->line[5] == ' ');
        if (sscanf(value, "%lu %lu %u", &s->number, &s->stamp, &length) != 3)
            fail("strange data: %.40s", s->line);
        if ((unsigned)(size - (value - s->line)) != length)
            fail("event %lu has %d bytes and not %u", s->number, size - (int)(value - s->line), length);
        s->has_data = 1;
    } else if (s == streams && !memcmp(s->line, "id:", 3))
        strcpy(s->id, s->line + 3 + (s->line[3] == ' '));
}

static void take_lines(struct stream *s, const char *data, size_t size, uint64_t at) {
    while (size) {
        const char *end = memchr(data, '\n', size);
        size_t part = end ? (size_t)(end - data) : size;
        if (s->line_size < LINE - 1) {
            size_t room = LINE - 1 - s->line_size;
            memcpy(s->line + s->line_size, data, part < room ? part : room);
        }
        if (part)
            s->last = data[part - 1];
        s->line_size += part;
        if (!end)
            return;
        line_ends(s, at);
        data += part + 1, size -= part + 1;
    }
}

static size_t take_head(struct stream *s, const char *data, size_t size) {
    if (!s->head)
        s->head = calloc(1, HEAD + 1);
    size_t room = HEAD - s->head_size, part = size < room ? size : room;
    int before = s->head_size;
    memcpy(s->head + before, data, part);
    s->head_size += part;
    char *end = strstr(s->head, "\r\n\r\n");
    if (!end) {
        if (s->head_size == HEAD)
            fail("a head of more than %d bytes", HEAD);
        return part;
    }
    end[2] = 0;
    if (strncmp(s->head, "HTTP/1.1 200", 12))
        fail("a stream was answered %.12s", s->head);
    s->place = strcasestr(s->head, "\r\ntransfer-encoding: chunked") ? IN_SIZE : RAW;
    part = end + 4 - s->head - before;
    free(s->head);
    s->head = NULL;
    if (!goal_events)
        s->opening = 0, opening--;
    return part;
}

static void take(struct stream *s, const char *data, size_t size, uint64_t at) {
    while (size) {
        size_t part = 1;
        switch (s->place) {
        case IN_HEAD:
            part = take_head(s, data, size);
            break;
        case IN_SIZE:
            if (*data == '\n') {
                if (!s->chunk)
                    fail("the server ended stream %d", (int)(s - streams));
                s->place = IN_CHUNK;
            } else if (*data != '\r')
                s->chunk = s->chunk * 16 + (*data <= '9' ? *data - '0' : (*data | 32) - 'a' + 10);
            break;
        case IN_CHUNK:
            part = size < s->chunk ? size : s->chunk;
            take_lines(s, data, part, at);
            if (!(s->chunk -= part))
                s->place = AFTER_CHUNK;
            break;
        case AFTER_CHUNK:
            if (*data == '\n')
                s->place = IN_SIZE;
            break;
        case RAW:
            part = size;
            take_lines(s, data, size, at);
        }
        data += part, size -= part;
    }
}

/* Answers to what was posted: counted, and their bodies skipped. */
static void take_answers(void) {
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
            fail("a publish was answered %.12s", buffer);
        char *length = strcasestr(buffer, "\r\ncontent-length:");
        body = length ? strtoul(length + 17, NULL, 10) : 0;
        size_t head = end + 4 - buffer;
        memmove(buffer, buffer + head, filled -= head);
        answers_due--;
    }
}

/* Take what comes, once; returns whether the timer went off. */
static int turn(int milliseconds) {
    struct epoll_event ready[512];
    int ticked = 0, count = epoll_wait(epoll, ready, 512, milliseconds);
    for (int i = 0; i < count; i++) {
        int index = (int)(int64_t)ready[i].data.u64;
        if (index == CONTROL) {
            take_answers();
        } else if (index == TIMER) {
            uint64_t times;
            ticked = read(timer, &times, sizeof times) > 0;
        } else {
            struct stream *s = &streams[index];
            ssize_t got = recv(s->fd, piece, PIECE, MSG_DONTWAIT);
            if (got > 0)
                take(s, piece, got, now());
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
    uint64_t began = now(), cpu = own_cpu(), end = began + PATIENCE * 1000000000ull;
    int last = opened + count;
    if (last > STREAMS)
        fail("more than %d streams", STREAMS);
    goal_first = first, goal_events = events;
    while (opened < last || opening) {
        while (opened < last && opening < window) {
            struct stream *s = &streams[opened];
            *s = (struct stream){.fd = connected(), .read = 1, .opening = 1, .next = events ? first : published};
            watch(s->fd, opened++);
            opening++;
            if (send(s->fd, request, size, MSG_NOSIGNAL) != size)
                fail("request: %s", strerror(errno));
        }
        turn(1000);
        if (now() > end)
            fail("%d streams did not open", opening);
    }
    printf("{\"ns\": %lu, \"cpu\": %lu}\n", now() - began, own_cpu() - cpu);
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
    answers_due += posts;
    write_all(buffer, filled);
}

static void expect(uint64_t more) {
    target = published + more;
    waiting = 0;
    for (int i = 0; i < opened; i++)
        waiting += streams[i].read && streams[i].next < target;
}

static void wait_for_all(void) {
    uint64_t end = now() + PATIENCE * 1000000000ull;
    while (waiting || answers_due) {
        turn(1000);
        if (now() > end)
            fail("%lu streams did not get their events, %lu posts no answer", waiting, answers_due);
    }
}

static void publish(int rounds, int events, int size, int posts) {
    uint64_t began = now(), cpu = own_cpu(), before = deliveries;
    for (int i = 0; i < rounds; i++) {
        expect(events);
        post(events, size, posts);
        wait_for_all();
    }
    printf("{\"deliveries\": %lu, \"ns\": %lu, \"cpu\": %lu}\n", deliveries - before, now() - began, own_cpu() - cpu);
}

static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void rate(int hertz, int count, int size, int skipped) {
    uint64_t began = now(), cpu = own_cpu(), before = deliveries, every = 1000000000u / hertz;
    struct itimerspec spec = {.it_value = {.tv_nsec = 1}, .it_interval = {every / 1000000000u, every % 1000000000u}};
    latencies = realloc(latencies, (latency_room = (uint64_t)count * opened) * sizeof *latencies);
    latency_count = 0, recording = 1, skip = skipped;
    expect(count);
    timerfd_settime(timer, 0, &spec, NULL);
    for (int sent = 0; sent < count;)
        if (turn(1000))
            post(1, size, 1), sent++;
    timerfd_settime(timer, 0, &(struct itimerspec){0}, NULL);
    wait_for_all();
    recording = 0;
    if (!latency_count)
        fail("nobody received anything");
    qsort(latencies, latency_count, sizeof *latencies, ascending);
    printf("{\"deliveries\": %lu, \"ns\": %lu, \"cpu\": %lu, \"p50\": %u, \"p99\": %u, \"max\": %u}\n",
           deliveries - before, now() - began, own_cpu() - cpu, latencies[latency_count / 2],
           latencies[latency_count * 99 / 100], latencies[latency_count - 1]);
}

static void stop(int count) {
    for (int i = 0; i < count && i < opened; i++) {
        epoll_ctl(epoll, EPOLL_CTL_DEL, streams[i].fd, NULL);
        streams[i].read = 0;
    }
    printf("{}\n");
}

int main(int argc, char **argv) {
    static char line[4096], path[256], id[256];
    int a, b, c, d;
    uint64_t first, events;
    if (argc != 2)
        return 2;
    port = atoi(argv[1]);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    control = connected();
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
        } else if (sscanf(line, "id %d", &a) == 1) {
            printf("{\"id\": \"%s\"}\n", ids[a % IDS]);
        } else if (!strncmp(line, "collect", 7)) {
            static const char request[] = "POST /collect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
            answers_due++;
            write_all(request, sizeof request - 1);
            wait_for_all();
            printf("{}\n");
        } else
            fail("unknown command");
        fflush(stdout);
    }
    return 0;
}
