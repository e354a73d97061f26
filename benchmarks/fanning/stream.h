/* A stream of the load: the state of its parser, and the next event. */
#include <stddef.h>
#include <stdint.h>

enum { STREAMS = 20000, LINE = 80, IDS = 4096 };
enum state { IN_HEAD, IN_SIZE, IN_CHUNK, AFTER_CHUNK, RAW };

struct stream {
    int fd;
    enum state state;
    int read, has_data, opening, line_size, head_size;
    char last;                    /* byte of the line */
    uint64_t chunk, next, number, stamp;
    char line[LINE], id[LINE];
    char *head;
};

/* Shared by all streams. */
extern struct stream streams[STREAMS];
extern char ids[IDS][LINE];                  /* of the events of the first stream */
extern int opening;                          /* streams that are not open yet */
extern uint64_t goal, target;                /* next numbers at which a stream is open, and complete */
extern uint64_t waiting, deliveries;         /* streams that are not complete; events of all streams */
extern uint32_t *latencies;                  /* microseconds; not recorded without room */
extern uint64_t latency_count, latency_room;
extern uint32_t *arrivals, *last;            /* streams that received each timed event; latency of the last one */
extern uint64_t timed_from, timed, readers;  /* first timed event, their number; streams that receive them */
extern int skip;                             /* streams whose latencies are not recorded */

/* Print an error and exit. */
void fail(const char *format, ...);

/* Parse received bytes: the response head, chunks, lines, events. */
void feed(struct stream *s, const char *data, size_t size, uint64_t at);
