// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"encoding/json"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"diskhook/storage/atomicfile"
	"diskhook/storage/failure"
)

// liveFile keeps status.json. A failure to write it stops nothing. What is noted
// as an Event, too, is noted first, so that who sees the one finds the other.
type liveFile struct {
	path string
	mu   sync.Mutex
	live Live
}

func (s *Service) newLive(set Set, use Use) *liveFile {
	l := Live{Schema: liveSchema, Set: set.Name, State: Starting, Use: use, Kind: use.kind(), Socket: socketPath(s.Layout, set.Name, use.kind())}
	for _, r := range set.Replicas {
		l.Replicas = append(l.Replicas, LiveReplica{ID: r.ID, Path: r.Top().String(), State: OutOfSet})
	}
	return &liveFile{path: s.runFile(set.Name, "status.json"), live: l}
}

// change alters the status and writes it.
func (f *liveFile) change(how func(*Live)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	how(&f.live)
	f.live.Updated = time.Now().UTC()
	_ = writeVolatileJSONMode(f.path, f.live, 0o644)
}

// replica alters what is said of one replica.
func (f *liveFile) replica(id string, how func(*LiveReplica)) {
	f.change(func(l *Live) {
		if i := slices.IndexFunc(l.Replicas, func(r LiveReplica) bool { return r.ID == id }); i >= 0 {
			how(&l.Replicas[i])
		}
	})
}

// end is the last thing that is said.
func (f *liveFile) end(err error) {
	f.change(func(l *Live) {
		l.State, l.PID = Stopped, 0
		if err == nil {
			return
		}
		l.State, l.Error, l.Hint = Failed, failure.OneLine(err.Error()), failure.HintOf(err)
		if kind := failure.KindOf(err); kind != nil {
			l.Code = kind.Code
		}
	})
}

func writeVolatileJSON(path string, v any) error { return writeVolatileJSONMode(path, v, 0o600) }

func writeVolatileJSONMode(path string, v any, mode os.FileMode) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return atomicfile.WriteVolatile(path, append(b, '\n'), mode)
}

// startOf is when a process started, field 22 of proc(5)'s stat; "" when it has
// gone or is a zombie.
func startOf(pid int) string {
	f := stat(pid)
	if len(f) < 20 || f[0] == "Z" {
		return ""
	}
	return f[19]
}

// parentOf is field 4.
func parentOf(pid int) int {
	f := stat(pid)
	if len(f) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(f[1])
	return n
}

// stat are the fields after the name, which may hold anything, in its brackets.
func stat(pid int) []string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil
	}
	i := strings.LastIndexByte(string(b), ')')
	return strings.Fields(string(b[i+1:]))
}
