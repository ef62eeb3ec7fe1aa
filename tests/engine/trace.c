/* SPDX-License-Identifier: MIT */
/* What was called, shown when something is wrong. */
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "play.h"

#define LINES 60u
#define WIDTH 120u

static struct {
	uint64_t seed;
	bool verbose;
	unsigned int n;
	char lines[LINES][WIDTH];
} record;

/* A sanitizer has reported. */
static void on_abort(int signal)
{
	(void)signal;
	fprintf(stderr, "seed %llu: a sanitizer's report\n",
		(unsigned long long)record.seed);
	_exit(1);
}

void trace_start(uint64_t seed, bool verbose)
{
	record.seed = seed;
	record.verbose = verbose;
	record.n = 0;
	signal(SIGABRT, on_abort);
}

void trace(const char *format, ...)
{
	char *line = record.lines[record.n++ % LINES];
	va_list args;

	va_start(args, format);
	vsnprintf(line, WIDTH, format, args);
	va_end(args);
	if (record.verbose)
		fprintf(stderr, "%s\n", line);
}

static void show(void)
{
	unsigned int first = record.n > LINES ? record.n - LINES : 0;

	for (unsigned int i = first; i < record.n; i++)
		fprintf(stderr, "  %s\n", record.lines[i % LINES]);
}

void fail(const char *format, ...)
{
	va_list args;

	if (!record.verbose)
		show();
	fprintf(stderr, "seed %llu: ", (unsigned long long)record.seed);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	_exit(1);
}
