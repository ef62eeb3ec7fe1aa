/* SPDX-License-Identifier: MIT */
/*
 * The engine alone, played with at random, beside a model of what must come
 * out. A play is one seed: a ring, connections to peers that the harness
 * plays too, some hundred calls, then an orderly end.
 *
 * What must come out:
 *
 *  1. Each request ends by exactly one event, and a borrowed segment comes
 *     back by exactly one (events.c).
 *  2. What a connection delivers is what was written, in order and without a
 *     gap, until something breaks it: then it is a prefix (peer.c).
 *  3. A buffer of the pool holds its bytes until the next call that may take
 *     it back, and none is ever lost (events.c, end.c).
 *  4. A descriptor given away is closed once, after its release and after
 *     the last request on it (connection.c, events.c).
 *  5. Memory is the engine's until the request ends and not a moment longer
 *     (request.c).
 *  6. A request with a deadline ends by itself, and not before (end.c,
 *     events.c).
 *  7. While anything is out, the ring wakes who armed it (wait.c).
 *  8. With more than half of the pool lent, no further work is run (events.c).
 *  9. The counters are the model's (counters.c).
 * 10. A call that fails has done nothing (calls.c).
 */
#ifndef PLAY_H
#define PLAY_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine.h"
#include "random.h"

#define MAX_CONNECTIONS 10
#define MAX_REQUESTS 8192
#define MAX_BUFFERS 64
#define MAX_EVENTS 64
#define NS_PER_MS INT64_C(1000000)

/* Bytes under way in one direction: a pattern, so a position tells each. */
struct flow {
	uint64_t written;	/* accepted by who carries it */
	uint64_t arrived;
	unsigned int salt;
	bool anything;		/* several write or read at once: all zeros */
	bool cut;		/* some of it was dropped: no more is written */
};

struct request;

struct connection {
	int ours;	/* the engine's end */
	int theirs;	/* the peer's end; -1: closed */
	bool tcp;
	bool open;	/* ours is the harness's or the engine's to close */
	struct flow out;	/* from the engine to the peer */
	struct flow in;
	struct request *outbox;
	struct request *closing;
	unsigned int readers;
	unsigned int writers;
	bool released;
	bool closed;	/* by the engine */
	bool spent;	/* its close was cancelled: reset, and input is lost */
	bool our_fin;
	bool their_fin;
	bool broken;	/* reset, or closed too early: errors may come */
};

enum ownership { REQUEST, SEGMENT };

struct request {
	uint64_t id;
	enum ownership kind;
	enum rtl_opcode opcode;
	struct connection *connection;	/* NULL: none of the play's */
	int fd;
	unsigned char *memory;
	unsigned int len;
	unsigned int used;	/* bytes of memory that hold something */
	int64_t deadline;
	uint64_t notify_below;
	uint64_t written;	/* bytes an outbox has accepted */
	bool over;
	bool accepting;		/* not waiting until it can */
	bool cancelled;
	bool shut_down;
	bool endless;		/* ends only when it is cancelled */
};

/* A buffer of the pool that the last reap has lent to us. */
struct loan {
	unsigned int buffer;
	unsigned int len;
	struct flow *flow;
	uint64_t position;
};

struct play {
	uint64_t seed;
	struct random random;
	struct rtl_ring *ring;
	enum rtl_engine engine;
	int eventfd;
	int listener;
	struct sockaddr_in address;	/* of the listener */
	unsigned int buffers;
	unsigned int buffer_size;

	struct connection connections[MAX_CONNECTIONS];
	struct request requests[MAX_REQUESTS];
	unsigned int n_requests;
	uint64_t last_id;
	struct loan loans[MAX_BUFFERS];
	unsigned int n_loans;
	unsigned int lent;	/* buffers, empty ones included */

	uint64_t received;
	uint64_t sent;		/* for certain */
	uint64_t perhaps_sent;	/* and what is, or was, yet to be sent */
	uint64_t moves;		/* grows with all that happens */
	bool multishot;
};

/* main.c */
void play_sees_close(int fd, int result);
void play_sees_work_run(void);
void play_sees_sqe(uint64_t id, bool accepts);
bool play_is_accepting(uint64_t id);
int64_t now_ns(void);

/* trace.c */
void trace_start(uint64_t seed, bool verbose);
void trace(const char *format, ...) __attribute__((format(printf, 1, 2)));
void fail(const char *format, ...)
	__attribute__((noreturn, format(printf, 1, 2)));

#define CHECK(condition, ...) do { \
	if (!(condition)) \
		fail(__VA_ARGS__); \
} while (0)

/* request.c */
const char *opcode_name(enum rtl_opcode opcode);
struct request *request_new(struct play *p, enum ownership kind,
			    enum rtl_opcode opcode, struct connection *c);
void request_forget(struct play *p, struct request *q);
void request_over(struct request *q);
struct request *request_find(struct play *p, uint64_t id);
unsigned int requests_live(const struct play *p);
void requests_free(struct play *p);

/* connection.c */
struct connection *connection_slot(struct play *p);
void connection_open(struct play *p, struct connection *c);
void connection_end(struct connection *c);
bool connection_is_used(const struct play *p, const struct connection *c);
void connection_release(struct play *p, struct connection *c);
void connection_closed_by_engine(struct play *p, int fd, int result);
void listener_open(struct play *p);

/* peer.c */
void flow_fill(const struct flow *f, uint64_t position, unsigned char *to,
	       unsigned int len);
void flow_check(const struct flow *f, uint64_t position,
		const unsigned char *data, unsigned int len, const char *what);
void peer_write(struct play *p, struct connection *c, unsigned int len);
void peer_read(struct play *p, struct connection *c, unsigned int len);
void peer_fin(struct connection *c);
void peer_close(struct play *p, struct connection *c, bool hard);
void peer_finish(struct play *p, struct connection *c);

/* calls.c */
void play_step(struct play *p);
void call_shutdown(struct play *p, struct request *q, int64_t deadline);
void call_cancel(struct play *p, struct request *q);
int call_submit(struct play *p);

/* events.c */
unsigned int reap(struct play *p);
void check_loans(struct play *p);

/* wait.c */
void wait_until(struct play *p, bool (*is_done)(const struct play *p));
void wait_set_limit(int64_t ns);
void arm(struct play *p);

/* counters.c */
void check_counters(struct play *p);

/* end.c */
void play_end(struct play *p);

/* birth.c */
void play_births(enum rtl_engine engine);

#endif
