// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"diskhook/storage/quorum"
)

// nbdDisk is the disk as the guest's QEMU opens it, which waits so many seconds
// for it to come back.
func nbdDisk(wait int) string {
	return fmt.Sprintf("driver=nbd,reconnect-delay=%d,export=%s,server.type=unix,server.path=%s", wait, set, quorum.SocketPath(sets().Layout, set))
}

// guest runs qemu-io commands on the disk.
func (m machine) guest(commands ...string) result {
	m.Helper()
	args := []string{"--image-opts", nbdDisk(0)}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	return m.try("", "qemu-io", args...)
}

// guestDoes wants them all to succeed; so does read -P on what it finds.
func (m machine) guestDoes(commands ...string) {
	m.Helper()
	if r := m.guest(commands...); r.code != 0 || strings.Contains(r.output, "failed") {
		m.Errorf("%q: %s", commands, r.output)
	}
}

// load is a guest that writes all the time, to the first 4 MiB.
type load struct {
	machine
	io         *exec.Cmd
	commands   *os.File
	stop, done chan struct{}
	sent       int

	mu   sync.Mutex
	said strings.Builder
}

// loaded begins a load. Each write has a pattern of its own.
func (m machine) loaded() *load {
	m.Helper()
	l := &load{machine: m, stop: make(chan struct{}), done: make(chan struct{})}
	in, out, err := os.Pipe()
	m.must(err)
	defer in.Close()
	l.commands = out
	l.io = exec.Command("qemu-io", "--image-opts", nbdDisk(600))
	l.io.Stdin, l.io.Stdout, l.io.Stderr = in, l, l
	m.must(l.io.Start())
	m.Cleanup(func() { _ = l.io.Process.Kill() })
	go func() {
		defer close(l.done)
		for ; ; l.sent++ {
			select {
			case <-l.stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
			fmt.Fprintf(l.commands, "aio_write -P %d %dk 60k\n", l.sent%250+1, 64*(l.sent%64))
			if l.sent%8 == 7 {
				fmt.Fprint(l.commands, "aio_flush\nflush\n") // the first waits for all that is under way
			}
		}
	}()
	l.goesOn()
	return l
}

// Write takes what qemu-io says.
func (l *load) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.said.Write(b)
}

func (l *load) written() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.said.String(), "wrote ")
}

// goesOn wants more writes to end.
func (l *load) goesOn() {
	l.Helper()
	from := l.written()
	l.within(fmt.Sprintf("the guest writes on after %d writes", from), func() bool { return l.written() > from+32 })
}

// ends ends the load, which must have met no error and find what it wrote.
func (l *load) ends() {
	l.Helper()
	close(l.stop)
	<-l.done
	fmt.Fprint(l.commands, "aio_flush\nflush\n")
	for i := max(0, l.sent-64); i < l.sent; i++ {
		fmt.Fprintf(l.commands, "read -q -P %d %dk 60k\n", i%250+1, 64*(i%64))
	}
	_ = l.commands.Close()
	ended := time.AfterFunc(patience, func() { _ = l.io.Process.Kill() })
	err := l.io.Wait()
	ended.Stop()
	for line := range strings.Lines(l.said.String()) {
		if strings.Contains(line, "failed") {
			l.Errorf("the guest met an error: %s", line)
		}
	}
	if err != nil {
		l.Errorf("the guest: %v", err)
	}
	l.Logf("%d writes", l.written())
}

// killedUnderLoad: `quorum serve` and the daemon in which the replicas vote are
// killed, and systemd or the former has them back; the guest sees nothing.
func killedUnderLoad(m machine) {
	d := voting()
	m.started(d)
	l := m.loaded()
	for i := range 2 {
		live := m.serving(0)
		m.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", unit)
		if now := m.serving(live.PID); strconv.Itoa(now.PID) != m.ofUnit("MainPID") {
			m.Errorf("served by %d, the unit's process is %s", now.PID, m.ofUnit("MainPID"))
		}
		if n := m.ofUnit("NRestarts"); n != strconv.Itoa(i+1) {
			m.Errorf("%s restarts, want %d", n, i+1)
		}
		l.goesOn()
	}

	live, before := m.serving(0), m.noted(quorum.EventRestarted, "")
	// The oldest of its daemons is the one that votes; another one serves the file.
	m.run("pkill", "-KILL", "-o", "-P", strconv.Itoa(live.PID), "qemu-storage")
	m.within("the daemon is started anew", func() bool { return m.noted(quorum.EventRestarted, "") > before })
	if now := m.serving(0); now.PID != live.PID {
		m.Errorf("served by %d, was %d", now.PID, live.PID)
	}
	l.goesOn()
	l.ends()
	m.stopped(d)
	m.equalReplicas("")
}
