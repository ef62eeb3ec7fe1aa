/* SPDX-License-Identifier: MIT */
/* From a seed to a play. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "faults.h"
#include "play.h"

#define FDS_NEEDED 1024u

static struct play play;

int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

void play_sees_close(int fd, int result)
{
	connection_closed_by_engine(&play, fd, result);
}

void play_sees_work_run(void)
{
	struct rtl_counters n;

	if (!engine_call() || strcmp(engine_call(), "rtl_reap"))
		return;
	rtl_counters(play.ring, &n);
	CHECK(n.buffers_lent <= n.buffers / 2,
	      "work is run while %llu of %llu buffers are lent",
	      (unsigned long long)n.buffers_lent,
	      (unsigned long long)n.buffers);
}

void play_sees_sqe(uint64_t id, bool accepts)
{
	struct request *q = request_find(&play, id);

	if (q)
		q->accepting = accepts;
}

bool play_is_accepting(uint64_t id)
{
	const struct request *q = request_find(&play, id);

	return q && q->accepting;
}

static unsigned int open_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned int n = 0;

	CHECK(dir, "harness: /proc/self/fd: %s", strerror(errno));
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

/* Half of the plays see no fault; the others a mixture of rates. */
static void choose_faults(struct play *p)
{
	unsigned int rates[FAULTS] = { 0 };

	if (one_in(&p->random, 2))
		for (int i = 0; i < FAULT_MMAP; i++)
			if (one_in(&p->random, 2))
				rates[i] = 2 + below(&p->random, 30);
	faults_start(random_next(&p->random), rates);
}

static const char *const engine_names[] = {
	[RTL_DEFERRED] = "io_uring, deferred",
	[RTL_COOPERATIVE] = "io_uring, cooperative",
	[RTL_EPOLL] = "epoll",
};

static void open_ring(struct play *p, enum rtl_engine engine)
{
	unsigned int sq = 2u << below(&p->random, 5);
	unsigned int cq = 64u << below(&p->random, 3);
	bool cooperative = one_in(&p->random, 4);
	int error;

	if (engine != RTL_EPOLL && cooperative)
		engine = RTL_COOPERATIVE;
	if (one_in(&p->random, 3))
		cq = sq;
	p->engine = engine;
	p->buffers = 2u << below(&p->random, 6);
	p->buffer_size = 64u << below(&p->random, 7);
	p->eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	error = rtl_open(&p->ring, p->eventfd, sq, cq, p->buffers,
			 p->buffer_size, engine);
	CHECK(!error, "open: %s", strerror(-error));
	trace("ring of %u and %u entries, %u buffers of %u, %s", sq, cq,
	      p->buffers, p->buffer_size, engine_names[engine]);
}

static void run(uint64_t seed, enum rtl_engine engine, unsigned int most_steps,
		bool verbose)
{
	unsigned int fds = open_fds(), steps;

	memset(&play, 0, sizeof(play));
	play.seed = seed;
	random_start(&play.random, seed);
	trace_start(seed, verbose);
	steps = 100 + below(&play.random, 1500);
	listener_open(&play);
	open_ring(&play, engine);
	choose_faults(&play);
	for (unsigned int i = 0; i < steps && i < most_steps; i++) {
		play_step(&play);
		check_counters(&play);
	}
	play_end(&play);
	close(play.eventfd);
	close(play.listener);
	CHECK(open_fds() == fds, "%u descriptors are open, %u were", open_fds(),
	      fds);
}

static void allow_fds(void)
{
	struct rlimit limit;

	getrlimit(RLIMIT_NOFILE, &limit);
	if (limit.rlim_cur < FDS_NEEDED)
		limit.rlim_cur = FDS_NEEDED;
	CHECK(!setrlimit(RLIMIT_NOFILE, &limit), "harness: RLIMIT_NOFILE: %s",
	      strerror(errno));
}

static uint64_t number(const char *text)
{
	char *end;
	uint64_t n = strtoull(text, &end, 10);

	if (*end || end == text) {
		fprintf(stderr, "not a number: %s\n", text);
		exit(2);
	}
	return n;
}

static void usage(void)
{
	fputs("usage: engine-test [-e] [-v] [-s SEED] [-n PLAYS] [-t SECONDS]\n"
	      "                   [-l STEPS]\n"
	      "  -e  on epoll, not on io_uring\n"
	      "  -v  show each call\n"
	      "  -s  the first seed (1)\n"
	      "  -n  how many seeds from there (200)\n"
	      "  -t  for how long nothing may move (20)\n"
	      "  -l  the most calls in a play, before its end\n", stderr);
	exit(2);
}

int main(int argc, char **argv)
{
	uint64_t first = 1, n = 200, seconds = 20, steps = UINT32_MAX;
	enum rtl_engine engine = RTL_DEFERRED;
	bool verbose = false;
	int option;

	while ((option = getopt(argc, argv, "ehvs:n:t:l:")) >= 0) {
		switch (option) {
		case 'e': engine = RTL_EPOLL; break;
		case 'v': verbose = true; break;
		case 's': first = number(optarg); break;
		case 'n': n = number(optarg); break;
		case 't': seconds = number(optarg); break;
		case 'l': steps = number(optarg); break;
		default: usage();
		}
	}
	wait_set_limit((int64_t)seconds * 1000 * NS_PER_MS);
	allow_fds();
	play_births(engine);
	for (uint64_t seed = first; seed < first + n; seed++)
		run(seed, engine, (unsigned int)steps, verbose);
	printf("engine: %s: %llu plays from seed %llu: nothing wrong\n",
	       engine == RTL_EPOLL ? "epoll" : "io_uring",
	       (unsigned long long)n, (unsigned long long)first);
	return 0;
}
