/* session.c: --session FILE (session.h). Puts away what a text needs to go on as if it had never stopped,
 * and nothing else: options are not kept, but for the cache type, which the rows are in. The text itself
 * is made in run.c, the cache's pages are described in mla.h.
 *
 *   offset 0            SessionHeader, 192 bytes
 *   192                 ids, int32, header.tokens of them; the first header.rows are in the cache
 *   then                logits, float32, header.logits of them: vocab_size if rows == tokens (the next
 *                       token is chosen from them), else none
 *   then                a CRC-32 for each page
 *   round up to 4096    = header.data_offset: the pages, each header.page_bytes: 128 rows of all layers,
 *                       as the cache holds them. The last may be
 *                       filled in part; there are as many as the rows need
 *   header.file_bytes   end of file
 *
 * Everything is little-endian. The header's checksum covers all that stands before the pages, theirs
 * included.
 *
 * A session is written to FILE.session.tmp, synced and renamed, so that a power cut leaves the old one or
 * the new one. The temporary file exists from the start (a place that cannot be written is known before
 * the first token) and is the lock: whoever holds it owns the session, and what a killed run leaves is
 * taken over by the next. A run that fails, or whose reader closes the pipe, leaves the session as it was. */
#include "cli/session.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "cli/output.h"
#include "kernels/clock.h"
#include "cli/system.h"
#include "engine/checkpoint.h"
#include "mla.h"

#define SESSION_MAGIC "MLA.S\r\n\032"

enum { SESSION_VERSION = 1, DATA_ALIGN = 4096, MAX_HEAD = 1 << 28 };

typedef struct {
    char magic[8];
    uint32_t version;
    uint32_t checksum; /* CRC-32 of bytes 0 .. data_offset - 1 with this field zero */
    uint64_t file_bytes;
    uint64_t data_offset;
    uint64_t page_bytes;
    uint64_t model;        /* fingerprint() */
    char model_name[64];   /* Config.name, for people */
    char cache[8];         /* as -k takes it, NUL-padded */
    uint64_t seed, random; /* the sampler: what it began with, its state */
    uint32_t tokens, rows;
    uint32_t cut; /* bytes at the end of the text that a stop text kept from being written */
    uint32_t logits;
    uint32_t pages;
    uint32_t conversation; /* 1: of --chat, whose turns are whole */
    uint32_t reserved[8];  /* 0 */
} SessionHeader;

_Static_assert(sizeof(SessionHeader) == 192, "the struct is the file format");

/* ---- what the file looks like --------------------------------------------------------------- */

/* The checkpoint's checksums: of everything before the tensors, and of the tensors' own. */
static uint64_t fingerprint(const Model *m) {
    const FileHeader *h = (const void *)m->file;
    uint32_t tensors = 0;
    for (size_t i = 0; i < m->tensor_count; i++)
        tensors = crc32(tensors, &m->tensors[i].checksum, sizeof m->tensors[i].checksum);
    return (uint64_t)h->checksum << 32 | tensors;
}

static size_t page_bytes(const Model *m, CacheType type) {
    return cache_token_bytes(&m->config, type, m->config.num_hidden_layers) * TILE_ROWS;
}

static uint64_t pages_of(uint64_t rows) { return (rows + TILE_ROWS - 1) / TILE_ROWS; }

static uint64_t data_offset(uint64_t tokens, uint64_t logits, uint64_t pages) {
    return (sizeof(SessionHeader) + 4 * (tokens + logits + pages) + DATA_ALIGN - 1) / DATA_ALIGN * DATA_ALIGN;
}

/* The three lists behind the header. */
static int32_t *head_ids(uint8_t *head) { return (int32_t *)(void *)(head + sizeof(SessionHeader)); }
static float *head_logits(uint8_t *head) {
    const SessionHeader *h = (const void *)head;
    return (float *)(void *)(head_ids(head) + h->tokens);
}
static uint32_t *head_page_checksums(uint8_t *head) {
    const SessionHeader *h = (const void *)head;
    return (uint32_t *)(void *)(head_logits(head) + h->logits);
}

static uint32_t head_checksum(const uint8_t *head) {
    SessionHeader h;
    memcpy(&h, head, sizeof h);
    h.checksum = 0;
    return crc32(crc32(0, &h, sizeof h), head + sizeof h, h.data_offset - sizeof h);
}

/* ---- the file system ------------------------------------------------------------------------ */

static bool read_at(int fd, void *to, size_t bytes, uint64_t offset) {
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pread(fd, (char *)to + done, bytes - done, (off_t)(offset + done));
        if (n < 0)
            return false;
        if (n == 0) { /* the file was longer when it was opened */
            errno = EIO;
            return false;
        }
        done += (size_t)n;
    }
    return true;
}

static bool write_at(int fd, const void *from, size_t bytes, uint64_t offset) {
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pwrite(fd, (const char *)from + done, bytes - done, (off_t)(offset + done));
        if (n < 0)
            return false;
        done += (size_t)n;
    }
    return true;
}

/* A rename is safe from a power cut once its directory is. Some file systems sync no directories and say
 * EINVAL: there is no more to be done. */
static bool sync_directory(char *path) {
    /* "/name" is in "/" */
    char *slash = strrchr(path, '/'), *end = slash == path ? slash + 1 : slash, kept = end ? *end : 0;
    if (end)
        *end = 0;
    int fd = open(end ? path : ".", O_RDONLY | O_CLOEXEC);
    if (end)
        *end = kept;
    bool synced = fd >= 0 && (!fsync(fd) || errno == EINVAL);
    if (fd >= 0)
        close(fd);
    return synced;
}

/* The name may be a link, and two names may mean one session. */
static bool name_files(Session *s) {
    static const char suffix[] = ".session.tmp";
    s->path = realpath(s->name, NULL);
    if (!s->path)
        s->path = strdup(s->name);
    s->temporary = s->path ? malloc(strlen(s->path) + sizeof suffix) : NULL;
    if (!s->temporary)
        return false;
    strcpy(s->temporary, s->path);
    strcat(s->temporary, suffix);
    return true;
}

/* Opens and locks the temporary file. The run that had it before may have renamed or removed it between
 * open and flock: then it is another file now that has the name. */
static int take_lock(Session *s) {
    for (;;) {
        struct stat mine, named;
        int fd = open(s->temporary, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0666);
        if (fd < 0)
            return failed(FAILED, "%s: the session could not be written here at the end: %s", s->temporary,
                          strerror(errno));
        if (fstat(fd, &mine) || !S_ISREG(mine.st_mode) || flock(fd, LOCK_EX | LOCK_NB)) {
            bool used = errno == EWOULDBLOCK && S_ISREG(mine.st_mode);
            int status =
                used ? failed(FAILED, "%s: in use by another run: wait for its end or give another name",
                              s->name)
                     : failed(FAILED, "%s: no file that can be locked: give the session another name",
                              s->temporary);
            close(fd);
            return status;
        }
        if (!lstat(s->temporary, &named) && named.st_dev == mine.st_dev && named.st_ino == mine.st_ino) {
            s->lock = fd;
            return DONE;
        }
        close(fd);
    }
}

/* ---- reading -------------------------------------------------------------------------------- */

static int damaged(const Session *s, const char *what) {
    return failed(FAILED, "%s: damaged: %s; give --session another name to begin anew", s->name, what);
}

/* Reads header and lists. Nothing is believed before the checksum is right, except sizes that agree with
 * the file's own. */
static int read_head(Session *s, uint64_t size) {
    SessionHeader h;
    size_t there = size < sizeof h ? (size_t)size : sizeof h;
    if (!read_at(s->file, &h, there, 0))
        return failed(FAILED, "%s: cannot read it: %s", s->name, strerror(errno));
    if (there < sizeof h.magic || memcmp(h.magic, SESSION_MAGIC, sizeof h.magic))
        return failed(FAILED,
                      "%s: not a session; --session takes a file that it wrote, or a name that is free",
                      s->name);
    if (there == sizeof h && h.version != SESSION_VERSION)
        return failed(FAILED,
                      "%s: a session of version %u, and this program knows version %d: give --session "
                      "another name to begin anew",
                      s->name, h.version, SESSION_VERSION);
    if (there < sizeof h || size < h.file_bytes)
        return failed(FAILED,
                      "%s: cut short, %llu bytes are there: copy it again, or give --session another name to "
                      "begin anew",
                      s->name, (unsigned long long)size);
    if (size != h.file_bytes || h.data_offset != data_offset(h.tokens, h.logits, h.pages) ||
        h.data_offset > size || h.data_offset > MAX_HEAD)
        return damaged(s, "its sizes contradict each other");
    s->head = malloc(h.data_offset);
    if (!s->head)
        return failed(FAILED, "out of memory");
    if (!read_at(s->file, s->head, h.data_offset, 0))
        return failed(FAILED, "%s: cannot read it: %s", s->name, strerror(errno));
    return head_checksum(s->head) == h.checksum ? DONE : damaged(s, "the checksum of its header is wrong");
}

/* -1: no such cache type. */
static int cache_type(const SessionHeader *h) {
    for (int i = 0; i < CACHE_TYPES; i++)
        if (!strncmp(h->cache, cache_names[i], sizeof h->cache))
            return i;
    return -1;
}

/* What a checksum cannot tell: whether the file fits this model and these options, and whether its numbers
 * are in range. */
static int check_head(const Session *s, Options *o) {
    const SessionHeader *h = (const void *)s->head;
    const Config *c = &s->model->config;
    int type = cache_type(h);
    if (h->model != fingerprint(s->model))
        return failed(
            FAILED,
            "%s: made with another model (%.63s) than %s: use that one, or give --session another name",
            s->name, h->model_name, s->model->path);
    if (type < 0)
        return failed(
            FAILED,
            "%s: its cache type %.8s is unknown to this program: give --session another name to begin anew",
            s->name, h->cache);
    if (o->typed[OPT_CACHE] && (int)o->cache != type)
        return failed(FAILED,
                      "%s: its cache is of another type than %s: use -k %s, or give --session another name",
                      s->name, cache_names[o->cache], cache_names[type]);
    o->cache = (CacheType)type;

    bool sizes = h->page_bytes == page_bytes(s->model, o->cache) && h->pages == pages_of(h->rows) &&
                 h->logits == (h->rows == h->tokens ? c->vocab_size : 0) &&
                 (h->file_bytes - h->data_offset) / h->page_bytes == h->pages &&
                 (h->file_bytes - h->data_offset) % h->page_bytes == 0;
    if (!sizes || !h->tokens || h->rows > h->tokens || h->rows > c->max_position_embeddings)
        return damaged(s, "its sizes contradict each other");
    const int32_t *ids = head_ids(s->head);
    for (size_t i = 0; i < h->tokens; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= c->vocab_size)
            return damaged(s, "a token is beyond the model's vocabulary");
    return DONE;
}

static int read_sequence(Session *s, Sequence *q, Options *o) {
    struct stat st;
    s->file = open(s->path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (s->file < 0)
        return errno == ENOENT ? DONE : failed(FAILED, "%s: cannot read it: %s", s->name, strerror(errno));
    if (fstat(s->file, &st) || !S_ISREG(st.st_mode))
        return failed(FAILED,
                      "%s: not a regular file; --session takes a file that it wrote, or a name that is free",
                      s->name);
    int status = read_head(s, (uint64_t)st.st_size);
    if (!status)
        status = check_head(s, o);
    if (status)
        return status;
    /* the new file keeps what the old one allows; where that is impossible it is as good as any new file */
    fchmod(s->lock, st.st_mode & 0777);
    const SessionHeader *h = (const void *)s->head;
    *q = (Sequence){.count = h->tokens,
                    .position = h->rows,
                    .cut = h->cut,
                    .conversation = h->conversation == 1,
                    .seed = h->seed,
                    .random = h->random};
    q->ids = malloc(q->count * sizeof *q->ids);
    if (!q->ids)
        return failed(FAILED, "out of memory");
    memcpy(q->ids, head_ids(s->head), q->count * sizeof *q->ids);
    return DONE;
}

int session_open(Session *s, Sequence *q, const Model *m, Options *o) {
    *s = (Session){.name = o->session, .model = m, .lock = -1, .file = -1};
    *q = (Sequence){0};
    if (!s->name)
        return DONE;
    if (!*s->name)
        return failed(WRONG_USAGE, "%s takes the name of a file", o->typed[OPT_SESSION]);
    if (!name_files(s))
        return failed(FAILED, "out of memory");
    signal(SIGXFSZ, SIG_IGN); /* a file that grows past the user's limit is then an error of write() */
    int status = take_lock(s);
    if (status)
        return status;
    if (ftruncate(s->lock, 0)) /* what a killed run left */
        return failed(FAILED, "%s: cannot write it: %s", s->temporary, strerror(errno));
    return read_sequence(s, q, o);
}

/* Better to know now than when the text is there. Where a file system tells no size nothing is known. */
static int check_room(const Session *s, const State *state) {
    struct statvfs disk;
    uint64_t rows = state->context, logits = s->model->config.vocab_size;
    uint64_t most = data_offset(rows + 1, logits, pages_of(rows)) +
                    pages_of(rows) * page_bytes(s->model, state->cache->type);
    if (fstatvfs(s->lock, &disk) || !disk.f_blocks || (uint64_t)disk.f_bavail * disk.f_frsize >= most)
        return DONE;
    return failed(
        FAILED, "%s: %zu tokens may take %.1f MB, and the disk has room for %.1f MB: use a smaller -n or -c",
        s->name, state->context, (double)most / 1e6, (double)disk.f_bavail * (double)disk.f_frsize / 1e6);
}

enum { PAGE_DAMAGED = INT_MAX };

/* Page i takes its place in the cache. 0, PAGE_DAMAGED, or errno if it cannot be read. */
static int read_page(const Session *s, const State *state, size_t i) {
    const SessionHeader *h = (const void *)s->head;
    uint8_t *page = cache_page(state->cache, 0, i);
    if (!read_at(s->file, page, h->page_bytes, h->data_offset + i * h->page_bytes))
        return errno;
    return crc32(0, page, h->page_bytes) == head_page_checksums(s->head)[i] ? 0 : PAGE_DAMAGED;
}

int session_load(Session *s, const Sequence *q, State *state) {
    int status = s->name ? check_room(s, state) : DONE, error = 0;
    if (status || s->file < 0)
        return status;
    const SessionHeader *h = (const void *)s->head;
    double start = seconds();
    cache_extend(state->cache, 0, q->position);
#ifdef _OPENMP
#pragma omp parallel for schedule(dynamic) num_threads(state->threads) reduction(max : error)
#endif
    for (size_t i = 0; i < h->pages; i++) {
        int page_error = read_page(s, state, i);
        error = page_error > error ? page_error : error;
    }
    if (error == PAGE_DAMAGED)
        return damaged(s, "the checksum of a page is wrong");
    if (error)
        return failed(FAILED, "%s: cannot read it: %s", s->name, strerror(error));
    memcpy(state->logits, head_logits(s->head), h->logits * sizeof *state->logits);
    note("session %u tokens, %.1f MB, read in %.3f s", h->tokens, (double)h->file_bytes / 1e6,
         seconds() - start);
    return DONE;
}

/* ---- writing -------------------------------------------------------------------------------- */

static uint8_t *make_head(const Session *s, const Sequence *q, const State *state) {
    const Model *m = s->model;
    CacheType type = state->cache->type;
    SessionHeader h = {
        .magic = SESSION_MAGIC,
        .version = SESSION_VERSION,
        .page_bytes = page_bytes(m, type),
        .model = fingerprint(m),
        .seed = q->seed,
        .random = q->random,
        .tokens = (uint32_t)q->count,
        .rows = (uint32_t)q->position,
        .cut = (uint32_t)q->cut,
        .logits = q->position == q->count ? m->config.vocab_size : 0,
        .pages = (uint32_t)pages_of(q->position),
        .conversation = q->conversation,
    };
    h.data_offset = data_offset(h.tokens, h.logits, h.pages);
    h.file_bytes = h.data_offset + h.pages * h.page_bytes;
    memcpy(h.model_name, m->config.name, sizeof h.model_name);
    memcpy(h.cache, cache_names[type], strlen(cache_names[type]));
    uint8_t *head = calloc(1, h.data_offset);
    if (!head)
        return NULL;
    memcpy(head, &h, sizeof h);
    memcpy(head_ids(head), q->ids, h.tokens * sizeof *q->ids);
    memcpy(head_logits(head), state->logits, h.logits * sizeof *state->logits);
    return head;
}

/* The pages first: the head holds their checksums. */
static bool write_session(const Session *s, uint8_t *head, const State *state) {
    SessionHeader *h = (void *)head;
    uint32_t *checksum = head_page_checksums(head);
    for (size_t i = 0; i < h->pages; i++) {
        const uint8_t *page = cache_page(state->cache, 0, i);
        checksum[i] = crc32(0, page, h->page_bytes);
        if (!write_at(s->lock, page, h->page_bytes, h->data_offset + i * h->page_bytes))
            return false;
    }
    h->checksum = head_checksum(head);
    return write_at(s->lock, head, h->data_offset, 0) && !fsync(s->lock);
}

int session_save(Session *s, const Sequence *q, const State *state) {
    if (!s->name)
        return DONE;
    uint8_t *head = make_head(s, q, state);
    if (!head)
        return failed(FAILED, "%s: out of memory to write it: it is as it was", s->name);
    bool written = write_session(s, head, state) && !rename(s->temporary, s->path);
    free(head);
    if (!written)
        return failed(FAILED, "%s: cannot write it: %s; the session is as it was", s->temporary,
                      strerror(errno));
    close(s->lock); /* no longer the temporary file: another run may have made one */
    s->lock = -1;
    return sync_directory(s->path)
               ? DONE
               : failed(FAILED, "%s: written, but not safe from a power cut: %s", s->name, strerror(errno));
}

void session_close(Session *s) {
    if (s->lock >= 0) {
        unlink(s->temporary);
        close(s->lock);
    }
    if (s->file >= 0)
        close(s->file);
    free(s->head);
    free(s->temporary);
    free(s->path);
}
