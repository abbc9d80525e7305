/* A stand-in for libnvidia-ml.so.1: it says what a script file tells it to say, on a clock of its own.
 *
 * The script is the file that $NVML_SCRIPT names; it is read again whenever it was replaced. One line is one fact,
 * which holds from the time before it on (0 where there is none); the last one that holds wins:
 *
 *     driver 570.86.10            nvml 12.570.86.10            cuda 12080            clock 35.5
 *     gpu 0 uuid GPU-1111         gpu 0 name NVIDIA H100       gpu 0 total 85520809984
 *     gpu 1 parent 0              gpu 0 mig 1                  gpu 0 processes 4711:1073741824,4712:-
 *     @20 gpu 0 gone 1            @20 error 0 nvmlDeviceGetPowerUsage 15            @30 error * nvmlDeviceGetCount_v2 999
 *     @40 hang 1 nvmlDeviceGetTemperature                      @50 uninitialize 1
 *
 * A number of a gpu that is not given is not supported. A gpu with a parent is a MIG slice of it. An error of code 0 is
 * none. `clock` sets the time; without it standin_clock() does, and before that it is 0. `uninitialize N` drops the
 * initialization, once for each N. -DOLD leaves out what drivers before 510 do not have.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEVICES 64
#define FACTS 64
#define FAULTS 64
#define TEXT 512

typedef struct { char key[32]; char text[TEXT]; } Fact;
typedef struct { int count; Fact facts[FACTS]; } Device;
typedef struct { char device[8]; char function[64]; int code; } Fault; /* code -1: hang */

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };

static Device devices[DEVICES];
static Fault faults[FAULTS];
static int fault_count;
static Device global;
static double now, read_at = -1;
static int initialized, dropped;
static char *script;
static struct stat script_stat;

void standin_clock(double seconds) { now = seconds; }

void standin_reset(void) { /* as if the process had begun anew */
    free(script);
    script = NULL;
    now = 0;
    initialized = dropped = 0;
}

static void set(Device *device, const char *key, const char *text) {
    int i = 0;
    while (i < device->count && strcmp(device->facts[i].key, key)) i++;
    if (i == FACTS) abort();
    if (i == device->count) device->count++;
    snprintf(device->facts[i].key, sizeof device->facts[i].key, "%s", key);
    snprintf(device->facts[i].text, TEXT, "%s", text);
}

static const char *get(Device *device, const char *key) {
    for (int i = 0; i < device->count; i++)
        if (!strcmp(device->facts[i].key, key)) return device->facts[i].text;
    return NULL;
}

static void apply(char *line) {
    double at = 0;
    int used = 0, place;
    char first[64], second[64], third[64];
    if (*line == '@') {
        if (sscanf(line, "@%lf %n", &at, &used) < 1) abort();
        line += used;
    }
    if (at > now || *line == '#' || sscanf(line, "%63s", first) < 1) return;
    used = 0;
    if (!strcmp(first, "gpu")) {
        if (sscanf(line, "%*s %d %31s %n", &place, second, &used) < 2 || !used || place < 0 || place >= DEVICES) abort();
        set(&devices[place], second, line + used);
    } else if (!strcmp(first, "error") || !strcmp(first, "hang")) {
        Fault *fault = &faults[fault_count++];
        fault->code = -1;
        int found = sscanf(line, "%*s %7s %63s %d", fault->device, fault->function, &fault->code);
        if (found < 2 || fault_count == FAULTS) abort();
    } else {
        if (sscanf(line, "%63s %63[^\n]", second, third) != 2) abort();
        set(&global, second, third);
    }
}

static void refresh(void) {
    struct stat found;
    const char *path = getenv("NVML_SCRIPT");
    if (!path || stat(path, &found)) return;
    int changed = !script || found.st_ino != script_stat.st_ino || found.st_size != script_stat.st_size ||
                  found.st_mtim.tv_nsec != script_stat.st_mtim.tv_nsec || found.st_mtim.tv_sec != script_stat.st_mtim.tv_sec;
    if (changed) {
        FILE *file = fopen(path, "r");
        if (!file) return;
        free(script);
        script = calloc(1, found.st_size + 1);
        if (fread(script, 1, found.st_size, file) != (size_t)found.st_size) abort();
        fclose(file);
        script_stat = found;
        char *clock = strncmp(script, "clock ", 6) ? strstr(script, "\nclock ") : script - 1;
        if (clock) now = atof(clock + 7);
    }
    if (!changed && now == read_at) return;
    read_at = now;
    memset(devices, 0, sizeof devices);
    memset(faults, 0, sizeof faults);
    memset(&global, 0, sizeof global);
    fault_count = 0;
    char *copy = strdup(script), *rest = copy, *line;
    while ((line = strsep(&rest, "\n"))) apply(line);
    free(copy);
    int drops = get(&global, "uninitialize") ? atoi(get(&global, "uninitialize")) : 0;
    if (drops > dropped) { dropped = drops; initialized = 0; }
}

/* What a call of a function comes to before it does anything: a fault, or that nobody initialized. */
static int begin(const char *function, Device *device) {
    char place[8] = "*";
    refresh();
    if (device) snprintf(place, sizeof place, "%d", (int)(device - devices));
    int code = SUCCESS;
    for (int i = 0; i < fault_count; i++)
        if ((!strcmp(faults[i].device, "*") || !strcmp(faults[i].device, place)) &&
            (!strcmp(faults[i].function, "*") || !strcmp(faults[i].function, function)))
            code = faults[i].code;
    while (code == -1) pause();
    if (code) return code;
    return initialized || !strcmp(function, "nvmlInitWithFlags") ? SUCCESS : UNINITIALIZED;
}

#define BEGIN(device) do { int code = begin(__func__, device); if (code) return code; } while (0)

static int number(Device *device, const char *key, double *value) {
    const char *text = get(device, key);
    if (!text) return NOT_SUPPORTED;
    *value = atof(text);
    return SUCCESS;
}

#define NUMBER(type, key, target, scale) do { \
    double told; int code; BEGIN(device); \
    if ((code = number(device, key, &told))) return code; \
    *(target) = (type)(told * (scale)); return SUCCESS; } while (0)

static int listed(Device *device) {
    return get(device, "uuid") && !(get(device, "gone") && atoi(get(device, "gone")));
}

static Device *nth(Device *parent, unsigned index) {
    char place[8] = "";
    if (parent) snprintf(place, sizeof place, "%d", (int)(parent - devices));
    for (int i = 0; i < DEVICES; i++) {
        const char *above = get(&devices[i], "parent");
        if (listed(&devices[i]) && !strcmp(above ? above : "", place) && !index--) return &devices[i];
    }
    return NULL;
}

static int copy(const char *text, char *buffer, unsigned size) {
    if (!text) return NOT_SUPPORTED;
    if (strlen(text) >= size) return INSUFFICIENT_SIZE;
    strcpy(buffer, text);
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; BEGIN(NULL); initialized = 1; return SUCCESS; }
int nvmlShutdown(void) { BEGIN(NULL); initialized = 0; return SUCCESS; }
const char *nvmlErrorString(int code) { return code == 28 ? "Not Found" : "an error of the stand-in"; }

int nvmlSystemGetDriverVersion(char *text, unsigned size) { BEGIN(NULL); return copy(get(&global, "driver"), text, size); }
int nvmlSystemGetNVMLVersion(char *text, unsigned size) { BEGIN(NULL); return copy(get(&global, "nvml"), text, size); }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { Device *device = &global; NUMBER(int, "cuda", version, 1); }
int nvmlSystemGetCudaDriverVersion(int *version) { Device *device = &global; NUMBER(int, "cuda", version, 1); }

int nvmlDeviceGetCount_v2(unsigned *count) {
    BEGIN(NULL);
    for (*count = 0; nth(NULL, *count); ++*count) {}
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device) {
    BEGIN(NULL);
    *device = nth(NULL, index);
    return *device ? begin(__func__, *device) : INVALID_ARGUMENT;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Device **device) {
    BEGIN(NULL);
    for (int i = 0; i < DEVICES; i++)
        if (listed(&devices[i]) && !strcmp(get(&devices[i], "uuid"), uuid)) {
            *device = &devices[i];
            return begin(__func__, *device);
        }
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(Device *device, char *text, unsigned size) { BEGIN(device); return copy(get(device, "uuid"), text, size); }
int nvmlDeviceGetName(Device *device, char *text, unsigned size) { BEGIN(device); return copy(get(device, "name"), text, size); }

/* nvmlPciInfo_t: char busIdLegacy[16], five unsigned, char busId[32] */
int nvmlDeviceGetPciInfo_v3(Device *device, void *target) {
    BEGIN(device);
    memset(target, 0, 68);
    return copy(get(device, "bus"), (char *)target + 36, 32);
}

typedef struct { unsigned long long total, free, used; } Memory;
int nvmlDeviceGetMemoryInfo(Device *device, Memory *memory) {
    double total, used = 0, reserved = 0;
    BEGIN(device);
    if (number(device, "total", &total)) return NOT_SUPPORTED;
    number(device, "used", &used);
    number(device, "reserved", &reserved);
    *memory = (Memory){(unsigned long long)total, (unsigned long long)(total - used - reserved),
                       (unsigned long long)(used + reserved)};
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(Device *device, unsigned *rates) {
    double gpu, memory = 0;
    BEGIN(device);
    if (number(device, "utilization", &gpu)) return NOT_SUPPORTED;
    number(device, "memory_utilization", &memory);
    rates[0] = (unsigned)gpu;
    rates[1] = (unsigned)memory;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(Device *device, int sensor, unsigned *value) { (void)sensor; NUMBER(unsigned, "temperature", value, 1); }
int nvmlDeviceGetTemperatureThreshold(Device *device, int kind, unsigned *value) {
    if (kind != 1) return INVALID_ARGUMENT;
    NUMBER(unsigned, "slowdown", value, 1);
}
int nvmlDeviceGetPowerUsage(Device *device, unsigned *value) { NUMBER(unsigned, "power", value, 1000); }
int nvmlDeviceGetEnforcedPowerLimit(Device *device, unsigned *value) { NUMBER(unsigned, "cap", value, 1000); }
int nvmlDeviceGetTotalEnergyConsumption(Device *device, unsigned long long *value) { NUMBER(unsigned long long, "energy", value, 1000); }
int nvmlDeviceGetFanSpeed(Device *device, unsigned *value) { NUMBER(unsigned, "fan", value, 1); }
int nvmlDeviceGetComputeMode(Device *device, int *value) { NUMBER(int, "compute_mode", value, 1); }

int nvmlDeviceGetClockInfo(Device *device, int kind, unsigned *value) {
    NUMBER(unsigned, kind == 1 ? "sm_clock" : kind == 2 ? "memory_clock" : "none", value, 1);
}
int nvmlDeviceGetMaxClockInfo(Device *device, int kind, unsigned *value) {
    NUMBER(unsigned, kind == 1 ? "sm_clock_max" : "none", value, 1);
}

int nvmlDeviceGetCudaComputeCapability(Device *device, int *major, int *minor) {
    const char *text;
    BEGIN(device);
    if (!(text = get(device, "capability"))) return NOT_SUPPORTED;
    return sscanf(text, "%d.%d", major, minor) == 2 ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetEccMode(Device *device, int *current, int *pending) {
    double value;
    BEGIN(device);
    if (number(device, "ecc", &value)) return NOT_SUPPORTED;
    *current = *pending = (int)value;
    return SUCCESS;
}
int nvmlDeviceGetTotalEccErrors(Device *device, int kind, int counter, unsigned long long *value) {
    (void)counter;
    NUMBER(unsigned long long, kind ? "ecc_uncorrected" : "ecc_corrected", value, 1);
}

int nvmlDeviceGetMigMode(Device *device, unsigned *current, unsigned *pending) {
    double value;
    BEGIN(device);
    if (number(device, "mig", &value)) return NOT_SUPPORTED;
    *current = *pending = (unsigned)value;
    return SUCCESS;
}
int nvmlDeviceGetMaxMigDeviceCount(Device *device, unsigned *count) {
    BEGIN(device);
    *count = get(device, "mig") ? 7 : 0;
    return SUCCESS;
}
int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned index, Device **slice) {
    BEGIN(device);
    *slice = get(device, "mig") && atoi(get(device, "mig")) ? nth(device, index) : NULL;
    return *slice ? SUCCESS : NOT_FOUND;
}
int nvmlDeviceIsMigDeviceHandle(Device *device, unsigned *is) { BEGIN(device); *is = !!get(device, "parent"); return SUCCESS; }
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(Device *slice, Device **device) {
    BEGIN(slice);
    if (!get(slice, "parent")) return INVALID_ARGUMENT;
    *device = &devices[atoi(get(slice, "parent"))];
    return SUCCESS;
}

typedef struct { unsigned pid; unsigned long long memory; unsigned gpu_instance, compute_instance; } Process;

/* pid:bytes,pid:bytes; - as the bytes where they are not told */
static int running(Device *device, const char *key, unsigned *count, Process *found) {
    unsigned there = 0, places = *count;
    char text[TEXT] = "", *rest = text, *one;
    if (get(device, key)) snprintf(text, TEXT, "%s", get(device, key));
    while ((one = strsep(&rest, ","))) {
        char *bytes = strchr(one, ':');
        if (!bytes) continue;
        if (found && there < places) {
            found[there].pid = (unsigned)atoi(one);
            found[there].memory = bytes[1] == '-' ? ~0ULL : strtoull(bytes + 1, NULL, 10);
            found[there].gpu_instance = found[there].compute_instance = ~0U;
        }
        there++;
    }
    *count = there;
    return there > places ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v2(Device *device, unsigned *count, Process *found) {
    BEGIN(device);
    return running(device, "processes", count, found);
}
int nvmlDeviceGetGraphicsRunningProcesses_v2(Device *device, unsigned *count, Process *found) {
    BEGIN(device);
    return running(device, "graphics", count, found);
}
int nvmlDeviceGetCurrentClocksThrottleReasons(Device *device, unsigned long long *bits) { NUMBER(unsigned long long, "throttle", bits, 1); }

#ifndef OLD
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } MemoryV2;
int nvmlDeviceGetMemoryInfo_v2(Device *device, MemoryV2 *memory) {
    double total, used = 0, reserved = 0;
    BEGIN(device);
    if (memory->version != 0x02000028) return INVALID_ARGUMENT;
    if (number(device, "total", &total)) return NOT_SUPPORTED;
    number(device, "used", &used);
    number(device, "reserved", &reserved);
    memory->total = (unsigned long long)total;
    memory->reserved = (unsigned long long)reserved;
    memory->used = (unsigned long long)used;
    memory->free = (unsigned long long)(total - used - reserved);
    return SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v3(Device *device, unsigned *count, Process *found) {
    BEGIN(device);
    return running(device, "processes", count, found);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(Device *device, unsigned *count, Process *found) {
    BEGIN(device);
    return running(device, "graphics", count, found);
}
int nvmlDeviceGetCurrentClocksEventReasons(Device *device, unsigned long long *bits) { NUMBER(unsigned long long, "throttle", bits, 1); }
typedef struct { unsigned version; int sensor; int temperature; } TemperatureV1;
int nvmlDeviceGetTemperatureV(Device *device, TemperatureV1 *found) {
    if (found->version != 0x0100000C) return INVALID_ARGUMENT;
    NUMBER(int, "temperature", &found->temperature, 1);
}
#endif
