#define _GNU_SOURCE
#include "stream.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEAD = 2048 };

struct stream streams[STREAMS];
char ids[IDS][LINE];
int opening, skip;
uint64_t goal, target, waiting, deliveries, latency_count, latency_room, timed_from, timed, readers;
uint32_t *latencies, *arrivals, *last;

void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    printf("{\"error\": \"");
    vprintf(format, arguments);
    printf("\"}\n");
    fflush(stdout);
    exit(1);
}

/* Check a complete event. */
static void received(struct stream *s, uint64_t at) {
    int index = s - streams;
    s->has_data = 0;
    if (s->number != s->next)
        fail("stream %d received event %lu instead of %lu", index, s->number, s->next);
    s->next++;
    deliveries++;
    if (index == 0)
        memcpy(ids[s->number % IDS], s->id, LINE);
    if (index >= skip && latency_count < latency_room)
        latencies[latency_count++] = (at - s->stamp) / 1000;
    uint64_t event = s->number - timed_from;
    if (event < timed && ++arrivals[event] == readers)
        last[event] = (at - s->stamp) / 1000;
    if (s->opening) {
        if (s->next == goal)
            s->opening = 0, opening--;
    } else if (s->next == target)
        waiting--;
}

static void end_line(struct stream *s, uint64_t at) {
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
            fail("invalid data: %.40s", s->line);
        if ((unsigned)(size - (value - s->line)) != length)
            fail("event %lu has %d bytes and not %u", s->number, size - (int)(value - s->line), length);
        s->has_data = 1;
    } else if (s == streams && !memcmp(s->line, "id:", 3))
        strcpy(s->id, s->line + 3 + (s->line[3] == ' '));
}

static void feed_lines(struct stream *s, const char *data, size_t size, uint64_t at) {
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
        end_line(s, at);
        data += part + 1, size -= part + 1;
    }
}

static size_t feed_head(struct stream *s, const char *data, size_t size) {
    if (!s->head)
        s->head = calloc(1, HEAD + 1);
    size_t room = HEAD - s->head_size, part = size < room ? size : room;
    int before = s->head_size;
    memcpy(s->head + before, data, part);
    s->head_size += part;
    char *end = strstr(s->head, "\r\n\r\n");
    if (!end) {
        if (s->head_size == HEAD)
            fail("a response head of more than %d bytes", HEAD);
        return part;
    }
    end[2] = 0;
    if (strncmp(s->head, "HTTP/1.1 200", 12))
        fail("the response to a stream was %.12s", s->head);
    s->state = strcasestr(s->head, "\r\ntransfer-encoding: chunked") ? IN_SIZE : RAW;
    size_t whole = end + 4 - s->head;
    free(s->head);
    s->head = NULL;
    if (!goal)
        s->opening = 0, opening--;
    return whole - before;
}

void feed(struct stream *s, const char *data, size_t size, uint64_t at) {
    while (size) {
        size_t part = 1;
        switch (s->state) {
        case IN_HEAD:
            part = feed_head(s, data, size);
            break;
        case IN_SIZE:
            if (*data == '\n') {
                if (!s->chunk)
                    fail("the server ended stream %d", (int)(s - streams));
                s->state = IN_CHUNK;
            } else if (*data != '\r')
                s->chunk = s->chunk * 16 + (*data <= '9' ? *data - '0' : (*data | 32) - 'a' + 10);
            break;
        case IN_CHUNK:
            part = size < s->chunk ? size : s->chunk;
            feed_lines(s, data, part, at);
            if (!(s->chunk -= part))
                s->state = AFTER_CHUNK;
            break;
        case AFTER_CHUNK:
            if (*data == '\n')
                s->state = IN_SIZE;
            break;
        case RAW:
            part = size;
            feed_lines(s, data, size, at);
        }
        data += part, size -= part;
    }
}
