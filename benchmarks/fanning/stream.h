/* A stream of the load: where it is in what it reads, and which event comes next. */
#include <stddef.h>
#include <stdint.h>

enum { STREAMS = 20000, LINE = 80, IDS = 4096 };
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

/* What all streams share. */
extern struct stream streams[STREAMS];
extern char ids[IDS][LINE];                  /* of the first stream's events */
extern int opening;                          /* streams on their way */
extern uint64_t goal, target;                /* the next number at which a stream is open, and at which it has all */
extern uint64_t waiting, deliveries;         /* streams that have not all; events of all streams */
extern uint32_t *latencies;                  /* microseconds; nobody notes them if there is no room */
extern uint64_t latency_count, latency_room;
extern int skip;                             /* streams whose latencies are not noted */

/* Say what went wrong, and end. */
void fail(const char *format, ...);

/* Take bytes as they came at some time: the head of the response, chunks, lines, events. */
void take(struct stream *s, const char *data, size_t size, uint64_t at);
