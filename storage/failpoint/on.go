// SPDX-License-Identifier: Apache-2.0

//go:build testroot

package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// passes counts how often each point was passed, under "" all of them. It is
// the program counter of the test, hence the one mutable variable here.
var (
	mu     sync.Mutex
	passes = map[string]int{}
)

// Hit passes the point called name.
func Hit(name string) error {
	mu.Lock()
	passes[name]++
	passes[""]++
	nth, all := passes[name], passes[""]
	logPass(name)
	mu.Unlock()
	for _, term := range strings.Split(os.Getenv("DISKHOOK_FAILPOINT"), ",") {
		point, what, _ := strings.Cut(term, "=")
		what, at, counted := strings.Cut(what, "@")
		switch {
		case point == "#"+strconv.Itoa(all):
		case point != name, counted && at != strconv.Itoa(nth):
			continue
		}
		if err := act(name, what); err != nil {
			return err
		}
	}
	return nil
}

func logPass(name string) {
	path := os.Getenv("DISKHOOK_FAILPOINT_LOG")
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o666)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	fmt.Fprintln(f, name)
}

func act(name, what string) error {
	switch verb, arg, _ := strings.Cut(what, ":"); verb {
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case "error":
		return fmt.Errorf("%s: %w", name, ErrInjected)
	case "sleep":
		d, err := time.ParseDuration(arg)
		if err != nil {
			panic(err)
		}
		time.Sleep(d)
	}
	return nil
}
