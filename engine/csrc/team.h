// Work on XLA's threads in stages, each cut into pieces that whoever is free takes.
#ifndef ATTAR_TEAM_H
#define ATTAR_TEAM_H

#include "xla_call.h"

// One piece of a stage; `thread` counts from 0, and no two threads at work have the same.
typedef void (*team_piece)(void *work, int64_t stage, int64_t piece, int64_t thread);

typedef struct team team;

// Into so many pieces a stage is cut for each thread, so that one that is late costs little.
enum { TEAM_PIECES = 4 };

// Threads of XLA's pool, but no more than have `least` of the work each, and at least one.
int64_t team_threads(const xla_call *call, int64_t work, int64_t least);

// A team of at most n_threads, which others may join until it is dismissed; NULL if there is no memory for it. `work`
// must live as long.
team *team_gather(const xla_call *call, int64_t n_threads, team_piece piece, void *work);

// Does all pieces of a stage; returns when they are done. Stages are numbered as the caller likes, below 2^31.
void team_run(team *team, int64_t stage, int64_t n_pieces);

// Nobody waits for a thread that has not begun: it finds nothing to do, and the last to leave frees the team.
void team_dismiss(team *team);

#endif
