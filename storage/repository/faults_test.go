// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/repository"
	"diskhook/storage/repository/format"
	"diskhook/storage/repository/format/localfs"
)

// faulty is localfs with the faults of storage that others have, too.
type faulty struct {
	localfs.Format
	hangs     atomic.Bool // nothing answers any more
	takenOver atomic.Bool // locks were taken from somebody who may wake up
	silent    string      // takenOver is of locks whose names begin so
	shared    bool        // other hosts have it, and may write what this one does
	slow      func()      // before a volume is made durable
	full      bool        // there is next to no room
	lost      atomic.Bool // locks may be somebody else's
	released  atomic.Bool // the repository's lock
	// Once each: before a volume's document is read, and before the repository is locked.
	reading, locking func()
	once             [2]sync.Once
	// writing is called before a document of that kind is written, written after it.
	kind             format.Kind
	writing, written func()
}

func (f *faulty) Open(ctx context.Context, parameters map[string]string) (format.Place, error) {
	p, err := f.Format.Open(ctx, parameters)
	return &faultyPlace{p, f}, err
}

type faultyPlace struct {
	format.Place
	f *faulty
}

func (p *faultyPlace) Read(ctx context.Context, kind format.Kind, id string) ([]byte, error) {
	if p.f.hangs.Load() {
		select {} // as a hard mount does; the caller leaves it behind
	}
	if kind == format.Volume && p.f.reading != nil {
		p.f.once[0].Do(p.f.reading)
	}
	return p.Place.Read(ctx, kind, id)
}

func (p *faultyPlace) Write(ctx context.Context, kind format.Kind, id string, data []byte, fence format.Fence) error {
	if kind != p.f.kind || p.f.writing == nil {
		return p.Place.Write(ctx, kind, id, data, fence)
	}
	p.f.writing()
	defer p.f.written()
	return p.Place.Write(ctx, kind, id, data, fence)
}

func (p *faultyPlace) Lock(ctx context.Context, name string) (format.Lock, error) {
	if p.f.locking != nil {
		p.f.once[1].Do(p.f.locking)
	}
	l, err := p.Place.Lock(ctx, name)
	return &losable{l, p.f}, err
}

// losable is a lock that tells when it was lost.
type losable struct {
	format.Lock
	f *faulty
}

func (l *losable) Check() error {
	if l.f.lost.Load() {
		return errLost
	}
	return l.Lock.Check()
}

func (l *losable) Release() {
	l.f.released.Store(true)
	l.Lock.Release()
}

var errLost = errors.New("the lock may be another host's")

func (p *faultyPlace) Flush(ctx context.Context, id, kind string) error {
	if p.f.slow != nil {
		p.f.slow()
	}
	return p.Place.Flush(ctx, id, kind)
}

func (p *faultyPlace) Capacity(ctx context.Context) (format.Capacity, error) {
	c, err := p.Place.Capacity(ctx)
	if p.f.full {
		c.Available = 4096
	}
	return c, err
}

func (p *faultyPlace) TryLock(ctx context.Context, name string) (format.Lock, error) {
	l, err := p.Place.TryLock(ctx, name)
	if err == nil && p.f.takenOver.Load() && strings.HasPrefix(name, p.f.silent) {
		l = takenOver{l}
	}
	return l, err
}

func (p *faultyPlace) Capabilities() format.Capabilities {
	c := p.Place.Capabilities()
	c.Shared = c.Shared || p.f.shared
	return c
}

type takenOver struct{ format.Lock }

func (takenOver) TakenOver() bool { return true }

func TestAHungRepositoryIsUnreachableAndOthersGoOn(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	ctx := t.Context()
	disk, base := w.diskOnBase()
	_, err := w.on("h1").CopyImage(ctx, "b", base, "", nil, repository.Options{})
	must(t, err)
	// h1 meets a server of repository a that has died.
	dead := &faulty{}
	dead.hangs.Store(true)
	s := w.on("h1")
	s.Formats = []format.Format{&only{dead, w.parameters("a")["path"]}}
	s.Deadline = 200 * time.Millisecond
	_, err = s.GetImage(ctx, "a", disk)
	refused(t, err, repository.ErrUnreachable, failure.Temporary, "diskhook repo disconnect --force a")
	_, err = s.CheckStorageRepository(ctx, "a")
	refused(t, err, repository.ErrUnreachable)
	s.Deadline = time.Minute
	quick := *s
	quick.Deadline = 200 * time.Millisecond

	// What b has is found without a; what only a has is not said to be missing.
	for _, o := range []repository.Options{{}, {ParticipatingRepositories: []string{"b"}}, {ImageHints: map[string]string{base: "b"}}} {
		_, err = s.CreateVirtualDisk(ctx, "b", 0, base, nil, o)
		must(t, err)
	}
	_, err = s.CopyImage(ctx, "b", base, "", nil, repository.Options{})
	must(t, err)
	_, err = quick.CopyImage(ctx, "b", disk, "", nil, repository.Options{})
	refused(t, err, repository.ErrUnreachable)
	refused(t, quick.DisconnectStorageRepository(ctx, "a", repository.Disconnect{}), repository.ErrUnreachable, "--force a")
	must(t, quick.DisconnectStorageRepository(ctx, "a", repository.Disconnect{Force: true}))
	if all, err := s.Connections(); err != nil || len(all) != 1 {
		t.Errorf("%+v: %v", all, err)
	}
}

// only is a format that is faulty for one path, and localfs for all others.
type only struct {
	*faulty
	path string
}

func (o *only) Open(ctx context.Context, parameters map[string]string) (format.Place, error) {
	if parameters["path"] == o.path {
		return o.faulty.Open(ctx, parameters)
	}
	return o.Format.Open(ctx, parameters)
}

// Who had the lock may wake up and write: nothing that he knew is published.
func TestATakenOverPlanBeginsInNewVolumes(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	ctx := t.Context()
	disk, base := w.diskOnBase()
	_, err := w.on("h1").CopyImage(ctx, "b", base, "", nil, repository.Options{})
	must(t, err)
	for _, from := range []string{"", base} {
		s := w.on("h1")
		copied, err := s.CopyImage(ctx, "b", disk, from, nil, repository.Options{NoAutoFix: true})
		must(t, err)
		// The first worker has made its volume, and then sleeps for long.
		sleeping := &faulty{}
		asleep, wake := make(chan struct{}), make(chan struct{})
		sleeping.slow = func() {
			select {
			case <-asleep:
			default:
				close(asleep)
				<-wake
			}
		}
		first := w.on("h1")
		first.Formats = []format.Format{sleeping}
		failed := make(chan error, 1)
		go func() { failed <- first.Run(ctx, "b", copied) }()
		<-asleep
		old := w.files("b")

		second := w.on("h2")
		thief := &stealing{}
		thief.takenOver.Store(true)
		second.Formats = []format.Format{thief}
		must(t, second.Run(ctx, "b", copied))
		w.holds("b", copied, w.path("now.raw"))
		p, err := w.on("h2").PrepareImage(ctx, "b", copied, repository.Preparing{Holder: "vm"})
		must(t, err)
		for _, l := range p.Layers[:1] {
			if slices.ContainsFunc(old, func(name string) bool { return l.Path == w.path("repos", "b", "data", name) }) {
				t.Errorf("%s is published, which the first worker has open", l.Path)
			}
		}
		must(t, w.on("h2").ReleaseImage(ctx, "b", copied, "vm"))
		close(wake)
		if err := <-failed; err == nil {
			t.Error("the first worker ended as if nothing had been")
		}
		w.holds("b", copied, w.path("now.raw"))
	}
	w.repair("b")
	if left := w.files("b"); len(left) != 3 { // base, the whole copy, the difference
		t.Errorf("left behind: %v", left)
	}
}

// stealing takes locks that others hold.
type stealing struct{ faulty }

func (s *stealing) Open(ctx context.Context, parameters map[string]string) (format.Place, error) {
	p, err := s.faulty.Open(ctx, parameters)
	return &stealingPlace{p}, err
}

type stealingPlace struct{ format.Place }

func (p *stealingPlace) TryLock(ctx context.Context, name string) (format.Lock, error) {
	return p.Place.TryLock(ctx, name+"-after-takeover")
}

func TestATaskIsStoppedAndGoesOnElsewhere(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	ctx := t.Context()
	disk, _ := w.diskOnBase()
	s := w.on("h1")
	copied, err := s.CopyImage(ctx, "b", disk, "", nil, repository.Options{NoAutoFix: true})
	must(t, err)
	st, err := s.GetImageStatus(ctx, "b", copied)
	must(t, err)
	if st.State != repository.Broken || !st.Open || st.Running || st.Stage != "0/2" || st.PercentComplete != -1 {
		t.Errorf("%+v", st)
	}
	slow := &faulty{}
	begun, wake := make(chan struct{}), make(chan struct{})
	slow.slow = func() { close(begun); <-wake }
	working := w.on("h1")
	working.Formats = []format.Format{slow}
	ended := make(chan error, 1)
	go func() { ended <- working.Run(ctx, "b", copied) }()
	<-begun
	refused(t, w.on("h2").Run(ctx, "b", copied), repository.ErrBusy, "host h1")
	tasks, err := w.on("h2").ListTasks(ctx, "b")
	if err != nil || len(tasks) != 1 || !tasks[0].Running || tasks[0].HostID != "h1" || tasks[0].ImageID != copied {
		t.Errorf("%+v: %v", tasks, err)
	}
	refused(t, s.DisconnectStorageRepository(ctx, "b", repository.Disconnect{}), repository.ErrBusy, "--force b")
	must(t, w.on("h2").StopTask(ctx, "b", copied))
	refused(t, <-ended, repository.ErrStopped, "from host h2")
	close(wake)
	st, err = s.GetImageStatus(ctx, "b", copied)
	must(t, err)
	if !st.Open || st.Running || st.Stage != "1/2" || st.HostID != "h1" || st.LastError == "" {
		t.Errorf("%+v", st)
	}
	report, err := w.on("h2").CheckStorageRepository(ctx, "b")
	if err != nil || len(report.Fixes) != 1 || report.Fixes[0].Type != repository.Mend {
		t.Fatalf("%+v: %v", report, err)
	}
	must(t, w.on("h2").FixStorageRepository(ctx, "b", report.Fixes[0], repository.Options{}))
	w.holds("b", copied, w.path("now.raw"))
	st, err = s.GetImageStatus(ctx, "b", copied)
	if err != nil || st.Open || st.HostID != "h2" || st.LastError != "" || st.State != repository.Optimized {
		t.Errorf("%+v: %v", st, err)
	}
}

func TestACopiedDifferenceWaitsForItsBase(t *testing.T) {
	eachFormat(t, func(t *testing.T, format string) {
		w := newWorld(t, format)
		s, ctx := w.on("h1"), t.Context()
		disk, base := w.diskOnBase()
		tip, err := s.CreateSnapshot(ctx, "a", disk, nil, repository.Options{})
		must(t, err)
		id, err := s.CopyImage(ctx, "b", tip, base, nil, repository.Options{})
		if err != nil || id != tip {
			t.Fatalf("%s: %v", id, err)
		}
		st, err := s.GetImageStatus(ctx, "b", tip)
		if err != nil || st.State != repository.Broken || !slices.Contains([]string{"link", "differ"}, st.StageName) || st.LastError == "" {
			t.Errorf("%+v: %v", st, err)
		}
		_, err = s.PrepareImage(ctx, "b", tip, repository.Preparing{Holder: "vm"})
		refused(t, err, repository.ErrBroken)
		if again, err := s.CopyImage(ctx, "b", tip, "", nil, repository.Options{}); err != nil || again != tip {
			t.Errorf("again: %s: %v", again, err)
		}
		_, err = s.CopyImage(ctx, "b", base, "", nil, repository.Options{})
		must(t, err)
		fixes := w.repair("b")
		if len(fixes) != 1 || fixes[0].Type != repository.Mend {
			t.Errorf("%+v", fixes)
		}
		w.holds("b", tip, w.path("now.raw"))
		w.holds("b", base, w.path("before.raw"))
	})
}

func TestARequestIsMadeOnce(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	s, ctx := w.on("h1"), t.Context()
	o := repository.Options{RequestID: "42"}
	first, err := s.CreateVirtualDisk(ctx, "a", mib, "", nil, o)
	must(t, err)
	again, err := w.on("h2").CreateVirtualDisk(ctx, "a", mib, "", nil, o)
	if err != nil || again != first {
		t.Errorf("%s, then %s: %v", first, again, err)
	}
	_, err = s.CreateVirtualDisk(ctx, "a", 2*mib, "", nil, o)
	refused(t, err, failure.Conflict, "something else")
	other, err := s.CreateVirtualDisk(ctx, "b", mib, "", nil, o)
	if err != nil || other == first {
		t.Errorf("another repository: %s: %v", other, err)
	}
	imported := w.reference("imported", mib)
	id, err := s.ImportImage(ctx, "a", []imagecheck.Layer{{Path: imported, Format: imagecheck.Raw}}, repository.Snapshot, nil, repository.Options{})
	must(t, err)
	w.holds("a", id, imported)
}

func TestNothingIsMadeWhereThereIsNoRoom(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	ctx := t.Context()
	disk, base := w.diskOnBase()
	s := w.on("h1")
	s.Formats = []format.Format{&faulty{full: true}}
	_, err := s.CopyImage(ctx, "b", disk, "", nil, repository.Options{})
	refused(t, err, failure.NoSpace, "diskhook repo check b")
	_, err = s.CreateVirtualDisk(ctx, "b", 0, base, nil, repository.Options{})
	refused(t, err, failure.NoSpace)
	none := repository.Options{}
	for _, o := range []repository.Options{none, {Strategy: repository.Performance}} {
		_, err = s.CreateVirtualDisk(ctx, "a", 0, base, nil, o)
		refused(t, err, failure.NoSpace, "diskhook repo check a")
	}
	_, err = s.CreateVirtualDisk(ctx, "a", mib, "", nil, none)
	refused(t, err, failure.NoSpace)
	_, err = s.CreateSnapshot(ctx, "a", disk, nil, none)
	refused(t, err, failure.NoSpace, "a snapshot takes")
	_, err = s.CopyImage(ctx, "b", disk, base, nil, none)
	refused(t, err, failure.NoSpace)
	_, err = s.ImportImage(ctx, "b", []imagecheck.Layer{{Path: w.path("now.raw"), Format: imagecheck.Raw}}, repository.Disk, nil, none)
	refused(t, err, failure.NoSpace, "the imported image takes")
	refused(t, s.ResizeVirtualDisk(ctx, "a", disk, 8*mib, none), failure.NoSpace)
	w.untouched("b")
	if n := w.count("a"); n != 2 {
		t.Errorf("%d images", n)
	}
	must(t, s.ResizeVirtualDisk(ctx, "a", disk, 4*mib, none)) // it has that size
	must(t, s.RemoveImage(ctx, "a", disk, none))              // which makes room
}
