/* cli/session.c: --session FILE (session.h). Saves what a text needs to be continued as if it had never
 * stopped, and nothing else. Of the options only the cache type is kept, because the saved rows have it.
 * The text itself is made in cli/generate.c and cli/chat.c; engine/cache.h describes the pages of the
 * cache.
 *
 *   offset 0            SessionHeader, header.header_bytes
 *   then                ids, int32, header.tokens of them; the first header.rows are in the cache
 *   then                logits, float32, header.logits of them: vocab_size if rows == tokens (the next
 *                       token is chosen from them), else none
 *   then                a CRC-32 for each page
 *   round up to 4096    = header.data_offset: the pages, each header.page_bytes: 128 rows of all layers (in
 *                       models with windows the compressed rows of more tokens), as
 *                       the cache holds them. There are as many as the rows need; the last may be filled
 *                       in part; its rows behind the last one are zeros
 *   then                the constant part of the sequence (engine/cache.h), if header.constant is 1
 *   header.file_bytes   end of file
 *
 * Everything is little-endian. The header's checksum covers all that stands before the pages, theirs
 * included. New fields are appended to the header, or take the place of reserved ones: a shorter header is
 * filled with zeros, and zero means what the program did before it had the field. A field that this program
 * does not know must be zero.
 *
 * A session is written to FILE.session.tmp, synced and renamed, so that a power cut leaves the old one or
 * the new one. The temporary file exists from the start, so that a place that cannot be written is known
 * before the first token. What a killed run leaves is taken over by the next: it is empty or has the mark
 * TEMPORARY_MODE, and any other file of that name is left alone. The run that has locked the temporary file
 * and FILE, where it exists, owns the session; after a save that is FILE alone. A run that fails, or whose
 * reader closes the pipe, leaves the session as it was. */
#include "cli/session.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "cli/output.h"
#include "cli/system.h"
#include "cli/target.h"
#include "engine/cache.h"
#include "engine/checkpoint.h"
#include "engine/sequence.h"
#include "engine/util.h"
#include "kernels/clock.h"
#include "kernels/team.h"

#define SESSION_MAGIC "MLA.S\r\n\032"

enum { SESSION_VERSION = 1, DATA_ALIGN = 4096, MAX_HEAD = 1 << 28 };
enum { FIRST_HEADER_BYTES = 192, MAX_HEADER_BYTES = 4096 };
enum { PATIENCE = 100 }; /* how often a save tries to get the temporary file that another run looks at */
/* Nobody executes a session, so the permission to do so marks the temporary files of this program. */
enum { TEMPORARY_MODE = S_IXUSR, SESSION_MODES = 0666 };

typedef struct SessionHeader {
    char magic[8];
    uint32_t version;
    uint32_t checksum; /* CRC-32 of bytes 0 .. data_offset - 1 with this field zero */
    uint64_t file_bytes;
    uint64_t data_offset;
    uint64_t page_bytes;
    uint64_t model;        /* fingerprint() */
    char model_name[64];   /* Config.name, for people */
    char cache[8];         /* as -k takes it, its first eight bytes, NUL-padded */
    uint64_t seed, random; /* the sampler: what it began with, its state */
    uint32_t tokens, rows;
    uint32_t cut; /* bytes at the end of the text that a stop text kept from being written */
    uint32_t logits;
    uint32_t pages;
    uint32_t conversation; /* its turns of --chat, all of them whole; 0: a text */
    uint32_t header_bytes; /* a multiple of 8; 0: FIRST_HEADER_BYTES */
    uint32_t constant;     /* 1: there is a constant part */
    uint32_t constant_checksum;
    uint32_t reserved[5]; /* 0 */
} SessionHeader;

_Static_assert(sizeof(SessionHeader) == FIRST_HEADER_BYTES, "the struct is the file format");

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
    return cache_page_bytes(&m->config, type, m->config.num_hidden_layers);
}

/* Of the model's constant part; 0: it has none. */
static size_t part_bytes(const Model *m, CacheType type) {
    return constant_bytes(&m->config, type, m->config.num_hidden_layers);
}

static uint64_t constant_offset(const SessionHeader *h) { return h->data_offset + h->pages * h->page_bytes; }

static uint32_t header_bytes(const SessionHeader *h) {
    return h->header_bytes ? h->header_bytes : FIRST_HEADER_BYTES;
}

/* Of a session with this header, tokens, logits and pages. */
static uint64_t data_offset(uint64_t header, uint64_t tokens, uint64_t logits, uint64_t pages) {
    return round_up((size_t)(header + 4 * (tokens + logits + pages)), DATA_ALIGN);
}

/* The three lists behind the header; `head` is the file's beginning, h its header. */
static int32_t *head_ids(const SessionHeader *h, uint8_t *head) {
    return (int32_t *)(void *)(head + header_bytes(h));
}
static float *head_logits(const SessionHeader *h, uint8_t *head) {
    return (float *)(void *)(head_ids(h, head) + h->tokens);
}
static uint32_t *head_page_checksums(const SessionHeader *h, uint8_t *head) {
    return (uint32_t *)(void *)(head_logits(h, head) + h->logits);
}

static uint32_t head_checksum(const uint8_t *head, uint64_t bytes) {
    static const uint32_t zero = 0;
    size_t at = offsetof(SessionHeader, checksum), end = at + sizeof zero;
    return crc32(crc32(crc32(0, head, at), &zero, sizeof zero), head + end, (size_t)bytes - end);
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

static int cannot_be_written(const char *path) {
    return log_error(FAILED, "%s: the session could not be written here at the end: %s", path,
                     strerror(errno));
}

static int not_a_file(const Session *s) {
    return log_error(FAILED,
                     "%s: not a regular file; --session takes a file that it wrote, or a name that is free",
                     s->name);
}

/* Two names may mean one session: links are followed. */
static int name_files(Session *s) {
    static const char suffix[] = ".session.tmp";
    bool direct;
    s->path = target_path(s->name, &direct);
    if (!s->path)
        return cannot_be_written(s->name);
    if (direct)
        return not_a_file(s);
    s->temporary = malloc(strlen(s->path) + sizeof suffix);
    if (!s->temporary)
        return log_error(FAILED, "out of memory");
    strcpy(s->temporary, s->path);
    strcat(s->temporary, suffix);
    return DONE;
}

/* Whether the descriptor and the name are still the same file. */
static bool still_named(int fd, const char *name) {
    struct stat mine, named;
    return !fstat(fd, &mine) && !lstat(name, &named) && named.st_dev == mine.st_dev &&
           named.st_ino == mine.st_ino;
}

static int in_use(const Session *s) {
    return log_error(FAILED, "%s: in use by another run: wait for its end or give another name", s->name);
}

/* Opens and locks the temporary file, and makes it empty. The run that had it before may have renamed or
 * removed it between open and flock: then it is another file now that has the name. `patience`: how often
 * to try again, after 10 ms, while another run has it. */
static int take_lock(Session *s, int patience) {
    struct stat st;
    int fd;
    for (;; close(fd)) {
        fd = open(s->temporary, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, SESSION_MODES);
        if (fd < 0 || fstat(fd, &st))
            return cannot_be_written(s->temporary);
        bool file = S_ISREG(st.st_mode);
        if (file && !flock(fd, LOCK_EX | LOCK_NB)) {
            if (still_named(fd, s->temporary))
                break;
        } else if (!file || errno != EWOULDBLOCK) {
            close(fd);
            return log_error(FAILED, "%s: no file that can be locked: give the session another name",
                             s->temporary);
        } else if (patience-- > 0) {
            nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
        } else {
            close(fd);
            return in_use(s);
        }
    }
    if (fstat(fd, &st) || st.st_nlink != 1 || (st.st_size && !(st.st_mode & TEMPORARY_MODE))) {
        close(fd);
        return log_error(
            FAILED,
            "%s: a file of yours has the name of the temporary file: move it away, or give the session "
            "another name",
            s->temporary);
    }
    s->lock = fd;
    s->mode = st.st_mode & SESSION_MODES;
    /* where that is impossible, what a killed run leaves is in the way */
    fchmod(fd, s->mode | TEMPORARY_MODE);
    if (ftruncate(fd, 0))
        return log_error(FAILED, "%s: cannot write it: %s", s->temporary, strerror(errno));
    output_guard(s->name, s->temporary);
    return DONE;
}

/* ---- reading -------------------------------------------------------------------------------- */

/* What to do about a file that cannot be gone on from. */
static const char *remedy(const Session *s) {
    return s->keep ? "make it anew with --session" : "give --session another name to begin anew";
}

static int damaged(const Session *s, const char *what) {
    return log_error(FAILED, "%s: damaged: %s; %s", s->name, what, remedy(s));
}

static int cannot_read(const Session *s) {
    return log_error(FAILED, "%s: cannot read it: %s", s->name, strerror(errno));
}

/* The first bytes of the file, which say how long the rest is. Nothing is believed before the checksum is
 * right, except sizes that agree with the file's own. */
static int read_first(const Session *s, uint64_t size, SessionHeader *h) {
    size_t there = size < FIRST_HEADER_BYTES ? (size_t)size : FIRST_HEADER_BYTES;
    if (!read_at(s->file, h, there, 0))
        return cannot_read(s);
    if (there < sizeof h->magic || memcmp(h->magic, SESSION_MAGIC, sizeof h->magic))
        return log_error(FAILED, "%s: not a session; %s", s->name,
                         s->keep ? "--from takes a file that --session wrote"
                                 : "--session takes a file that it wrote, or a name that is free");
    if (there == FIRST_HEADER_BYTES && h->version != SESSION_VERSION)
        return log_error(FAILED, "%s: a session of version %u, and this program knows version %d: %s",
                         s->name, h->version, SESSION_VERSION, remedy(s));
    if (there < FIRST_HEADER_BYTES || size < h->file_bytes)
        return log_error(FAILED, "%s: cut short, %llu bytes are there: copy it again, or %s", s->name,
                         (unsigned long long)size, remedy(s));
    uint32_t header = header_bytes(h);
    if (header % 8 || header < FIRST_HEADER_BYTES || header > MAX_HEADER_BYTES || size != h->file_bytes ||
        h->data_offset != data_offset(header, h->tokens, h->logits, h->pages) || h->data_offset > size ||
        h->data_offset > MAX_HEAD)
        return damaged(s, "its sizes contradict each other");
    return DONE;
}

static bool all_zero(const void *bytes, size_t n) {
    const uint8_t *p = bytes;
    size_t i = 0;
    while (i < n && !p[i])
        i++;
    return i == n;
}

/* Reads header and lists. */
static int read_head(Session *s, uint64_t size) {
    SessionHeader first = {0};
    int status = read_first(s, size, &first);
    if (status)
        return status;
    SessionHeader *h = s->header = calloc(1, sizeof *h);
    s->head = malloc((size_t)first.data_offset);
    if (!h || !s->head)
        return log_error(FAILED, "out of memory");
    if (!read_at(s->file, s->head, (size_t)first.data_offset, 0))
        return cannot_read(s);
    if (memcmp(s->head, &first, FIRST_HEADER_BYTES))
        return log_error(FAILED, "%s: changed while it was read: let nothing else write it, and run again",
                         s->name);
    if (head_checksum(s->head, first.data_offset) != first.checksum)
        return damaged(s, "the checksum of its header is wrong");
    size_t header = header_bytes(&first), known = min(header, sizeof *h);
    memcpy(h, s->head, known);
    if (!all_zero(s->head + known, header - known) || !all_zero(h->reserved, sizeof h->reserved))
        return log_error(
            FAILED,
            "%s: written by a newer version of this program, with what this one does not know: use "
            "that version, or %s",
            s->name, remedy(s));
    return DONE;
}

/* -1: no such cache type. */
static int cache_type(const SessionHeader *h) {
    for (int i = 0; i < CACHE_TYPES; i++)
        if (!strncmp(h->cache, cache_names[i], sizeof h->cache))
            return i;
    return -1;
}

/* What a checksum does not show: whether the file fits this model and these options, and whether its
 * numbers are in range. */
static int check_head(const Session *s, Options *o) {
    const SessionHeader *h = s->header;
    const Config *cfg = &s->model->config;
    int type = cache_type(h);
    if (h->model != fingerprint(s->model))
        return log_error(FAILED, "%s: made with another model (%.63s) than %s: use that one, or %s", s->name,
                         h->model_name, s->model->path, remedy(s));
    if (type < 0)
        return log_error(FAILED, "%s: its cache type %.8s is unknown to this program: %s", s->name, h->cache,
                         remedy(s));
    if (o->given[OPT_CACHE] && (int)o->cache != type)
        return log_error(FAILED, "%s: its cache is of another type than %s: use -k %s, or %s", s->name,
                         cache_names[o->cache], cache_names[type], remedy(s));
    o->cache = (CacheType)type;

    bool sizes = h->page_bytes == page_bytes(s->model, o->cache) &&
                 h->pages == cache_pages(&s->model->config, h->rows) &&
                 h->logits == (h->rows == h->tokens ? cfg->vocab_size : 0) &&
                 h->constant == (h->rows && part_bytes(s->model, o->cache)) &&
                 h->file_bytes == constant_offset(h) + h->constant * part_bytes(s->model, o->cache);
    if (!sizes || !h->tokens || h->rows > h->tokens || h->rows > cfg->max_position_embeddings)
        return damaged(s, "its sizes contradict each other");
    const int32_t *ids = head_ids(h, s->head);
    for (size_t i = 0; i < h->tokens; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= cfg->vocab_size)
            return damaged(s, "a token is beyond the model's vocabulary");
    return DONE;
}

/* s->file = the session, for reading. DONE with -1: there is none yet. */
static int open_file(Session *s, struct stat *st) {
    s->file = open(s->keep ? s->name : s->path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (s->file < 0)
        return errno == ENOENT && !s->keep ? DONE : cannot_read(s);
    if (fstat(s->file, st) || !S_ISREG(st->st_mode))
        return not_a_file(s);
    if (s->keep) /* a session is never changed, but replaced by a new file: what was opened stays whole */
        return DONE;
    if (flock(s->file, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK)
        return in_use(s);
    if (!(st->st_mode & 0222) || access(s->path, W_OK))
        return log_error(
            FAILED,
            "%s: read-only, and the session is written at the end: make it writable, or give --session the "
            "name of a copy",
            s->name);
    s->mode = st->st_mode & SESSION_MODES; /* the new file keeps what the old one allows */
    return DONE;
}

static int read_text(Session *s, SavedText *text, Options *o) {
    struct stat st;
    int status = open_file(s, &st);
    if (status || s->file < 0)
        return status;
    status = read_head(s, (uint64_t)st.st_size);
    if (!status)
        status = check_head(s, o);
    if (status)
        return status;
    const SessionHeader *h = s->header;
    *text = (SavedText){
        .count = h->tokens, .cut = h->cut, .turns = h->conversation, .seed = h->seed, .random = h->random};
    return DONE;
}

int session_open(Session *s, SavedText *text, const Model *m, Options *o) {
    *s = (Session){.name = o->session, .model = m, .keep = o->given[OPT_FROM], .lock = -1, .file = -1};
    *text = (SavedText){0};
    if (!s->name)
        return DONE;
    if (!*s->name)
        return log_error(WRONG_USAGE, "%s takes the name of a file",
                         o->given[s->keep ? OPT_FROM : OPT_SESSION]);
    int status = s->keep ? DONE : name_files(s);
    if (!status && !s->keep)
        status = take_lock(s, 0);
    return status ? status : read_text(s, text, o);
}

/* Better to know it before the text is computed. A file system that reports no size is not checked. */
static int check_room(const Session *s, const State *state) {
    struct statvfs disk;
    size_t rows = state->context, logits = s->model->config.vocab_size;
    CacheType type = state->cache->type;
    uint64_t most =
        data_offset(sizeof(SessionHeader), rows + 1, logits, cache_pages(&s->model->config, rows)) +
        cache_pages(&s->model->config, rows) * page_bytes(s->model, type) + part_bytes(s->model, type);
    if (fstatvfs(s->lock, &disk) || !disk.f_blocks || (uint64_t)disk.f_bavail * disk.f_frsize >= most)
        return DONE;
    return log_error(
        FAILED, "%s: %zu tokens may take %.1f MB, and the disk has room for %.1f MB: use a smaller -n or -c",
        s->name, state->context, (double)most / 1e6, (double)disk.f_bavail * (double)disk.f_frsize / 1e6);
}

enum { PAGE_DAMAGED = INT_MAX };

/* Page i takes its place in the cache. 0, PAGE_DAMAGED, or errno if it cannot be read. */
static int read_page(const Session *s, const Sequence *q, size_t i) {
    const SessionHeader *h = s->header;
    uint8_t *page = cache_page(q, i);
    if (!read_at(s->file, page, (size_t)h->page_bytes, h->data_offset + i * h->page_bytes))
        return errno;
    return crc32(0, page, (size_t)h->page_bytes) == head_page_checksums(h, s->head)[i] ? 0 : PAGE_DAMAGED;
}

/* The constant part takes its place. A number that is not finite would make all text after it such. */
static int read_constant(const Session *s, Sequence *q) {
    const SessionHeader *h = s->header;
    const Config *cfg = &s->model->config;
    size_t bytes = part_bytes(s->model, q->cache->type);
    float *part = sequence_new_constant(q);
    if (!read_at(s->file, part, bytes, constant_offset(h)))
        return cannot_read(s);
    if (crc32(0, part, bytes) != h->constant_checksum)
        return damaged(s, "the checksum of its constant part is wrong");
    return all_finite(part, constant_floats(cfg, cfg->num_hidden_layers))
               ? DONE
               : damaged(s, "its constant part holds a non-finite number");
}

typedef struct {
    const Session *s;
    const Sequence *q;
    atomic_int error; /* the largest of read_page() */
} Pages;

static void read_pages(Thread *t, void *context) {
    Pages *p = context;
    for (size_t i, n = p->s->header->pages; (i = next_task(t, n)) < n;) {
        int error = read_page(p->s, p->q, i), largest = atomic_load(&p->error);
        while (error > largest && !atomic_compare_exchange_weak(&p->error, &largest, error)) {
        }
    }
}

int session_load(Session *s, Sequence *q, State *state) {
    int status = s->name && !s->keep ? check_room(s, state) : DONE;
    if (status || s->file < 0)
        return status;
    const SessionHeader *h = s->header;
    double start = seconds();
    memcpy(q->ids, head_ids(h, s->head), h->tokens * sizeof *q->ids);
    q->count = h->tokens;
    sequence_reserve(q, h->rows); /* which are less than the context */
    Pages pages = {.s = s, .q = q};
    team_run_with(&state->team, state->threads, read_pages, &pages);
    int error = atomic_load(&pages.error);
    if (error == PAGE_DAMAGED)
        return damaged(s, "the checksum of a page is wrong");
    if (error)
        return log_error(FAILED, "%s: cannot read it: %s", s->name, strerror(error));
    if (h->constant && (status = read_constant(s, q)))
        return status;
    q->rows = h->rows;
    sequence_mark(q);
    memcpy(state->logits, head_logits(h, s->head), h->logits * sizeof *state->logits);
    log_info("session %u tokens, %.1f MB, read in %.3f s", h->tokens, (double)h->file_bytes / 1e6,
             seconds() - start);
    return DONE;
}

/* ---- writing -------------------------------------------------------------------------------- */

static uint8_t *make_head(const Session *s, const SavedText *text, const Sequence *q, const State *state) {
    const Model *m = s->model;
    CacheType type = state->cache->type;
    SessionHeader h = {
        .magic = SESSION_MAGIC,
        .version = SESSION_VERSION,
        .page_bytes = page_bytes(m, type),
        .model = fingerprint(m),
        .seed = text->seed,
        .random = text->random,
        .tokens = (uint32_t)q->count,
        .rows = (uint32_t)q->rows,
        .cut = (uint32_t)text->cut,
        .logits = q->rows == q->count ? m->config.vocab_size : 0,
        .pages = (uint32_t)cache_pages(&m->config, q->rows),
        .conversation = text->turns,
        .constant = q->rows && part_bytes(m, type),
    };
    h.data_offset = data_offset(header_bytes(&h), h.tokens, h.logits, h.pages);
    h.file_bytes = constant_offset(&h) + h.constant * part_bytes(m, type);
    memcpy(h.model_name, m->config.name, sizeof h.model_name);
    memcpy(h.cache, cache_names[type], strnlen(cache_names[type], sizeof h.cache));
    uint8_t *head = calloc(1, (size_t)h.data_offset);
    if (!head)
        return NULL;
    memcpy(head, &h, sizeof h);
    memcpy(head_ids(&h, head), q->ids, h.tokens * sizeof *q->ids);
    memcpy(head_logits(&h, head), state->logits, h.logits * sizeof *state->logits);
    return head;
}

/* The pages first: the head holds their checksums. */
static bool write_session(const Session *s, uint8_t *head, const Sequence *q) {
    SessionHeader *h = (void *)head;
    uint32_t *checksum = head_page_checksums(h, head);
    sequence_clear_rest(q);
    for (size_t i = 0; i < h->pages; i++) {
        const uint8_t *page = cache_page(q, i);
        checksum[i] = crc32(0, page, (size_t)h->page_bytes);
        if (!write_at(s->lock, page, (size_t)h->page_bytes, h->data_offset + i * h->page_bytes))
            return false;
    }
    if (h->constant) {
        const float *part = sequence_constant(q);
        size_t bytes = part_bytes(s->model, q->cache->type);
        h->constant_checksum = crc32(0, part, bytes);
        if (!write_at(s->lock, part, bytes, constant_offset(h)))
            return false;
    }
    h->checksum = head_checksum(head, h->data_offset);
    return write_at(s->lock, head, (size_t)h->data_offset, 0) && !fsync(s->lock);
}

int session_save(Session *s, const SavedText *text, const Sequence *q, const State *state) {
    if (!s->name || s->keep)
        return DONE;
    mode_t mode = s->mode;
    int status = s->lock < 0 ? take_lock(s, PATIENCE) : DONE; /* where it was saved before */
    if (status)
        return status;
    uint8_t *head = make_head(s, text, q, state);
    if (!head)
        return log_error(FAILED, "%s: out of memory to write it: it is as it was", s->name);
    bool written = write_session(s, head, q);
    free(head);
    if (!written || rename(s->temporary, s->path))
        return log_error(FAILED, "%s: cannot write it: %s; the session is as it was", s->temporary,
                         strerror(errno));
    output_guard(NULL, NULL);
    /* After the rename: a run that is killed between the two must not leave a temporary file without its
     * mark, which the next run would leave alone. On a session the mark does no harm. */
    fchmod(s->lock, s->mode = mode);
    if (s->file >= 0)
        close(s->file);
    s->file = s->lock;
    s->lock = -1; /* the lock goes with the file */
    return sync_directory(s->path) ? DONE
                                   : log_error(FAILED, "%s: written, but not safe from a power cut: %s",
                                               s->name, strerror(errno));
}

void session_close(Session *s) {
    if (s->lock >= 0) {
        unlink(s->temporary);
        close(s->lock);
    }
    output_guard(NULL, NULL);
    if (s->file >= 0)
        close(s->file);
    free(s->head);
    free(s->header);
    free(s->temporary);
    free(s->path);
}
