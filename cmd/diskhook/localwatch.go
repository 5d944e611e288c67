// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"

	"diskhook/storage/failure"
	"diskhook/storage/localdisk"
	"diskhook/storage/progress"
)

func statusFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "watch", Aliases: []string{"w"}, Usage: "follow copies that are being made until they end; with -o json one line for each change"},
		&cli.BoolFlag{Name: "follow", Usage: "--watch without an end: wait for copies to come"},
		connectFlag(),
	}
}

// A watcher reads status files and locks every watchEvery, which costs next to
// nothing, and asks the storage only now and then or when somebody began or ended.
const (
	watchEvery = 500 * time.Millisecond
	lookEvery  = 5 * time.Second
	// watchGrace is how long it waits for a copy that somebody is about to start.
	watchGrace = 3 * time.Second
)

func localStatus(p *program, c *cli.Context) error {
	f, err := outputOf(c)
	if err != nil {
		return err
	}
	names, err := namedDisks(c)
	if err != nil {
		return err
	}
	s, err := p.services(c)
	if err != nil {
		return err
	}
	wanted := make([]named, len(names))
	for i, n := range names {
		if wanted[i].domain, err = s.workedOn(c.Context, n.domain); err != nil {
			return err
		}
		wanted[i].disks = n.disks
	}
	w := &watcher{p: p, c: c, s: s, f: f, names: names, wanted: wanted, follow: c.Bool("follow")}
	watches := c.Bool("watch") || w.follow
	if watches {
		err = w.watch()
	} else {
		err = w.look()
	}
	if err == nil {
		err = w.missing()
	}
	if err != nil || watches && f == inJSON {
		return err // what there is was told line by line
	}
	s.noteChanges(c.Context, w.entries)
	if err := p.printCopies(f, w.entries); err != nil || len(names) > 0 {
		return err
	}
	s.tellMore(c.Context, p)
	return nil
}

// watcher follows the copies of some domains, or of all.
type watcher struct {
	p      *program
	c      *cli.Context
	s      *services
	f      format
	names  []named // as they were given
	wanted []named // by UUID; none is all
	follow bool

	entries []localdisk.Entry
	told    map[string]watched
}

func (n named) matches(e localdisk.Entry) bool {
	return e.Domain == n.domain && (len(n.disks) == 0 || slices.Contains(n.disks, e.Target) || slices.Contains(n.disks, e.Key))
}

// look asks for everything there is.
func (w *watcher) look() error {
	all, err := w.s.local.List(w.c.Context)
	if err != nil {
		return err
	}
	w.entries = nil
	for _, e := range all {
		if len(w.wanted) == 0 || slices.ContainsFunc(w.wanted, func(n named) bool { return n.matches(e) }) {
			w.entries = append(w.entries, e)
		}
	}
	return nil
}

// missing refuses names of which nothing was found.
func (w *watcher) missing() error {
	for i, n := range w.wanted {
		name := w.names[i].domain
		if len(n.disks) == 0 && !slices.ContainsFunc(w.entries, n.matches) {
			return noCopy(name, "any disk")
		}
		for _, disk := range n.disks {
			if !slices.ContainsFunc(w.entries, named{n.domain, []string{disk}}.matches) {
				return noCopy(name, disk)
			}
		}
	}
	return nil
}

func noCopy(domain, disk string) error {
	err := failure.New(failure.NotFound, "domain %s: no local copy of %s", domain, disk)
	return failure.Hint(err, "see `diskhook local list`")
}

// watch tells what changes until nobody works on any of the copies, or for ever.
func (w *watcher) watch() error {
	ctx := w.c.Context
	r := w.p.reporter(w.f)
	defer r.close()
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	defer signal.Stop(asked)
	w.told = map[string]watched{}
	grace := time.Now().Add(watchGrace)
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	var looked time.Time
	for {
		if w.s.local.Refresh(w.entries) || time.Since(looked) >= lookEvery || w.missing() != nil {
			if err := w.look(); err != nil {
				return err
			}
			looked = time.Now()
		}
		if err := w.tell(r, false); err != nil {
			return err
		}
		atWork := slices.ContainsFunc(w.entries, func(e localdisk.Entry) bool { return e.Busy || e.Settling })
		failed := slices.ContainsFunc(w.entries, localdisk.Entry.Failed) // somebody may be about to try again
		waits := (failed || w.missing() != nil) && time.Now().Before(grace)
		if !w.follow && !atWork && !waits {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no longer watching: %w", ctx.Err())
		case <-asked:
			if w.f == inJSON {
				if err := w.tell(r, true); err != nil {
					return err
				}
			}
		case <-tick.C:
		}
	}
}

// watched is one line of `status --watch -o json`. Sizes are bytes, the rate is
// bytes per second, the ETA seconds or -1.
type watched struct {
	Schema     string          `json:"schema"` // "diskhook.local-status/v1"
	Domain     string          `json:"domain"`
	DomainName string          `json:"domain_name"`
	Target     string          `json:"target"`
	Key        string          `json:"key"`
	Copy       localdisk.State `json:"copy"`
	Busy       bool            `json:"busy"`
	Settling   bool            `json:"settling"`
	Exporting  bool            `json:"exporting"`
	State      progress.State  `json:"state,omitempty"` // of the process that works on it, or did last
	Percent    int             `json:"percent"`
	Done       int64           `json:"done"`
	Total      int64           `json:"total"`
	Rate       int64           `json:"rate"`
	ETA        int64           `json:"eta"`
	Error      string          `json:"error,omitempty"`
	Problem    string          `json:"problem,omitempty"`
}

func watchedOf(e localdisk.Entry) watched {
	l := watched{
		Schema: "diskhook.local-status/v1", Domain: e.Domain, DomainName: e.DomainName, Target: e.Target, Key: e.Key,
		Copy: e.Copy.State, Busy: e.Busy, Settling: e.Settling, Exporting: e.Exporting, ETA: -1, Problem: e.Problem,
	}
	if st := e.Status; st != nil {
		l.State, l.Percent, l.Done, l.Total, l.Rate, l.ETA, l.Error = st.State, st.Percent(), st.Done, st.Total, st.Rate, st.ETA, st.Error
	}
	return l
}

// tell reports what is new, or with all everything.
func (w *watcher) tell(r *reporter, all bool) error {
	for _, e := range w.entries {
		if w.f != inJSON {
			if e.Status != nil {
				r.tell(fmt.Sprintf("domain %s: disk %s", or(e.DomainName, e.Domain), e.Target), *e.Status)
			}
			continue
		}
		now, key := watchedOf(e), e.Domain+"/"+e.Key
		if before, is := w.told[key]; is && before == now && !all {
			continue
		}
		w.told[key] = now
		if err := json.NewEncoder(w.p.stdout).Encode(now); err != nil {
			return err
		}
	}
	return nil
}
