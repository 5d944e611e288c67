// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/schollz/progressbar/v3"

	"diskhook/storage/localdisk"
	"diskhook/storage/progress"
)

// reporter tells on standard error how long work goes on: by a bar on a
// terminal, by a line every ten percent or half a minute elsewhere, by JSON
// lines with -o json. SIGUSR1 gets a line at once in every case.
type reporter struct {
	out   io.Writer
	style style
	began time.Time
	stop  func()

	mu    sync.Mutex
	bar   *progressbar.ProgressBar
	order []string
	works map[string]*work
}

type style int

const (
	lines style = iota
	bar
	jsonLines
)

// work is one object's last state and when it was told.
type work struct {
	object  string
	status  progress.Status
	told    time.Time
	percent int
}

const tellEvery = 30 * time.Second

// reporter starts one; the caller ends it with close.
func (p *program) reporter(f format) *reporter {
	r := &reporter{out: p.stderr, began: time.Now(), works: map[string]*work{}}
	switch {
	case f == inJSON:
		r.style = jsonLines
	case isTerminal(p.stderr):
		r.style = bar
	}
	signals := make(chan os.Signal, 1)
	done := make(chan struct{})
	signal.Notify(signals, syscall.SIGUSR1)
	go func() {
		for {
			select {
			case <-signals:
				r.tellAll()
			case <-done:
				return
			}
		}
	}()
	r.stop = sync.OnceFunc(func() { signal.Stop(signals); close(done) })
	return r
}

func (r *reporter) close() {
	r.stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.bar != nil {
		_ = r.bar.Clear()
	}
}

// copies is told of copies by localdisk. How an earlier copy ended is no news.
func (r *reporter) copies(d localdisk.Disk, st progress.Status) {
	if st.State.Final() && st.Updated.Before(r.began) {
		return
	}
	r.tell(d.String(), st)
}

// work returns what to call for work on one object; rate and ETA are taken
// from the start.
func (r *reporter) work(object string) progress.Func {
	began := time.Now()
	return func(done, total int64) {
		st := progress.Status{State: progress.Copying, Done: done, Total: total, ETA: -1, Started: began}
		if spent := time.Since(began).Seconds(); spent > 0 && done > 0 {
			st.Rate = int64(float64(done) / spent)
			st.ETA = (total - done) / max(1, st.Rate)
		}
		r.tell(object, st)
	}
}

func (r *reporter) tell(object string, st progress.Status) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.works[object]
	if w == nil {
		w = &work{object: object, percent: -1}
		r.works[object] = w
		r.order = append(r.order, object)
	}
	changed := w.status.State != st.State
	if w.status.Note != st.Note {
		w.percent = -1 // it is of something else now
	}
	w.status = st
	switch r.style {
	case jsonLines:
		r.json(w)
	case bar:
		r.draw()
	case lines:
		tenth := st.Percent() / 10
		if changed && st.State.Final() || st.State == progress.Copying && (tenth > w.percent || time.Since(w.told) > tellEvery) {
			w.percent = tenth
			r.line(w)
		}
	}
}

func (r *reporter) tellAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, object := range r.order {
		if r.style == jsonLines {
			r.json(r.works[object])
			continue
		}
		if r.bar != nil {
			_ = r.bar.Clear()
		}
		r.line(r.works[object])
	}
}

func (r *reporter) line(w *work) {
	w.told = time.Now()
	fmt.Fprintf(r.out, "diskhook: %s: %s\n", harmless(w.object), inWords(w.status))
}

// inWords is a status for people.
func inWords(st progress.Status) string {
	if st.State != progress.Copying || st.Total <= 0 {
		return string(st.State)
	}
	text := fmt.Sprintf("%d %% of %s", st.Percent(), size(st.Total))
	if st.Note != "" {
		text = harmless(st.Note) + ": " + text
	}
	if st.Rate > 0 {
		text += fmt.Sprintf(", %s/s", size(st.Rate))
	}
	if st.ETA >= 0 {
		text += fmt.Sprintf(", %s left", time.Duration(st.ETA)*time.Second)
	}
	return text
}

func (r *reporter) json(w *work) {
	_ = json.NewEncoder(r.out).Encode(struct {
		Type   string         `json:"type"`
		Object string         `json:"object"`
		State  progress.State `json:"state"`
		Done   int64          `json:"done"`
		Total  int64          `json:"total"`
		Rate   int64          `json:"rate"`
		ETA    int64          `json:"eta"`
	}{"progress", w.object, w.status.State, w.status.Done, w.status.Total, w.status.Rate, w.status.ETA})
}

// draw shows one bar for all the work there is.
func (r *reporter) draw() {
	var done, total int64
	for _, w := range r.works {
		done, total = done+w.status.Done, total+w.status.Total
	}
	if total <= 0 {
		return
	}
	if r.bar == nil {
		r.bar = progressbar.NewOptions64(total,
			progressbar.OptionSetWriter(r.out),
			progressbar.OptionShowBytes(true),
			progressbar.OptionUseIECUnits(true),
			progressbar.OptionSetPredictTime(true),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionFullWidth(),
			progressbar.OptionClearOnFinish(),
		)
	}
	r.bar.ChangeMax64(total)
	what := harmless(r.order[0])
	if len(r.order) > 1 {
		what = fmt.Sprintf("%d disks", len(r.order))
	}
	r.bar.Describe(what)
	_ = r.bar.Set64(done)
}
