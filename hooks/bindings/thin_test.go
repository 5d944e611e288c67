// SPDX-License-Identifier: Apache-2.0

package bindings_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"diskhook/hooks/bindings"
	"diskhook/hooks/hooktest"
	"diskhook/storage/failure"
	"diskhook/storage/thin/member"
	"diskhook/xmlrewrite"
)

// clusters is one thin cluster, san, of which volumes are held by domains.
type clusters struct {
	dir   string
	held  map[string]string // by volume
	fail  map[string]error  // by volume: what Claim and Release fail with
	hangs chan struct{}     // the LUN answers when it is closed; nil: it does
}

func (c *clusters) Cluster(name string) (string, error) {
	if name != "" && name != "san" {
		return "", failure.Hint(failure.New(failure.NotFound, "cluster %s: it is not defined on this host", name), "copy it")
	}
	return "san", nil
}

func (c *clusters) Path(cluster, volume string) string { return filepath.Join(c.dir, cluster, volume) }

func (c *clusters) There(context.Context, string, string) error { return nil }

func (c *clusters) Preview(_ context.Context, _, volume, domain string) (member.Preview, error) {
	if c.hangs != nil {
		<-c.hangs
	}
	return member.Preview{Here: c.held[volume] != "", Held: c.held[volume] == domain}, c.taken(volume, domain)
}

func (c *clusters) taken(volume, domain string) error {
	if holder := c.held[volume]; holder != "" && holder != domain {
		return failure.Hint(failure.New(failure.Conflict, "volume %s: domain %s has it", volume, holder), "shut that domain down")
	}
	return nil
}

func (c *clusters) Claim(_ context.Context, cluster, volume, domain string) (string, error) {
	if err := errors.Join(c.fail[volume], c.taken(volume, domain)); err != nil {
		return "", err
	}
	c.held[volume] = domain
	path := c.Path(cluster, volume)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	return path, os.WriteFile(path, nil, 0o600)
}

func (c *clusters) Reclaim(_ context.Context, _, volume, domain string) error {
	return c.taken(volume, domain)
}

func (c *clusters) Release(_ context.Context, _, volume, domain string) error {
	if c.held[volume] == domain {
		delete(c.held, volume)
	}
	return c.fail[volume]
}

func (c *clusters) ReleaseRest(ctx context.Context, domain string) error {
	for volume := range c.held {
		if err := c.Release(ctx, "san", volume, domain); err != nil {
			return err
		}
	}
	return nil
}

func thinHost(t *testing.T) (*hooktest.World, *clusters) {
	w := hooktest.New(t, &hooktest.Local{})
	c := &clusters{dir: w.Path("run/diskhook/thin"), held: map[string]string{}, fail: map[string]error{}}
	w.Thin = c
	return w, c
}

func thinDomain(t *testing.T, w *hooktest.World, uuid, text string) *xmlrewrite.Document {
	t.Helper()
	r, err := w.Rewrite(volumeDomain(t, uuid, "file /srv/none-a", "file /srv/none-b"), mustParse(t, text, bindings.Flag))
	if err != nil {
		t.Fatal(err)
	}
	return r.After
}

func thinLink(w *hooktest.World, target string) string {
	return filepath.Join(w.Layout.ThinDisks(), owner, target)
}

// What a start makes, its end takes away, and of two volumes the one that was attached
// before the other failed as well.
func TestThinLife(t *testing.T) {
	w, c := thinHost(t)
	doc := thinDomain(t, w, owner, "vda:thin=a;vdb:thin=b,cluster=san")
	if strings.Count(string(doc.Bytes()), "<dh:thin cluster='san' volume=") != 2 {
		t.Errorf("%s", doc.Bytes())
	}
	again, err := w.Rewrite(doc, mustParse(t, "vda:thin=a", bindings.Flag))
	if err != nil || again.Diff() != "" {
		t.Errorf("again: %v %s", err, again.Diff())
	}
	c.fail["b"] = failure.New(failure.Temporary, "the master did not answer")
	_, _, err = startVolumes(t, w.Host, doc)
	refused(t, err, failure.Temporary, "domain vm: disk vdb: the master did not answer", "diskhook thin status --cluster san")
	if _, err := os.Lstat(thinLink(w, "vda")); len(c.held) != 0 || err == nil {
		t.Errorf("left: %v, %v", c.held, err)
	}
	delete(c.fail, "b")
	d, bound, err := startVolumes(t, w.Host, doc)
	if err != nil {
		t.Fatal(err)
	}
	if to, err := os.Readlink(thinLink(w, "vdb")); to != c.Path("san", "b") || err != nil {
		t.Errorf("%q, %v", to, err)
	}
	if err := w.Own(t.Context(), d, bound, bindings.Label{Owned: true, UID: os.Getuid(), GID: os.Getgid()}); err != nil {
		t.Error(err)
	}
	refused(t, bindings.Migratable(d, bound), failure.Precondition, "bound to thin and cannot be migrated", "another host of the cluster")
	if err := os.RemoveAll(w.Layout.ThinDisks()); err != nil {
		t.Fatal(err)
	}
	if err := w.Relink(t.Context(), d, bound, 0); err != nil {
		t.Error(err)
	}
	c.fail["a"] = errors.New("the LUN is away")
	if err := w.Release(t.Context(), d, bound, "shutdown"); err == nil || !strings.Contains(err.Error(), "disk vda: volume san/a: the LUN is away") {
		t.Errorf("%v", err)
	}
	delete(c.fail, "a")
	for range 2 {
		if err := w.Release(t.Context(), d, bound, "shutdown"); err != nil {
			t.Error(err)
		}
	}
	if files, _ := os.ReadDir(w.Layout.ThinDisks()); len(files) != 0 || len(c.held) != 0 {
		t.Errorf("left: %v, %v", files, c.held)
	}
}

// A LUN that does not answer is given up by the deadline, with nothing begun.
func TestThinHangs(t *testing.T) {
	w, c := thinHost(t)
	doc := thinDomain(t, w, owner, "vda:thin=a")
	c.hangs = make(chan struct{})
	defer close(c.hangs)
	d, bound, err := w.Start(t.Context(), doc, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Fulfil(t.Context(), d, bound, time.Millisecond)
	refused(t, err, failure.Temporary, "disk vda: volume san/a: no answer from its storage", "look after the disk of cluster san")
	if len(c.held) != 0 {
		t.Errorf("%v", c.held)
	}
}

func TestThinRefused(t *testing.T) {
	w, c := thinHost(t)
	for text, want := range map[string]struct {
		kind *failure.Kind
		word string
	}{
		"vda:thin":                 {failure.Usage, "which volume is missing"},
		"thin=a":                   {failure.Usage, "one volume cannot be every disk"},
		"vda:thin=a,size=1":        {failure.Usage, "no option but cluster"},
		"vda:thin=a+b":             {failure.Usage, "not names"},
		"vda:thin=a,cluster=.x":    {failure.Usage, "not names"},
		"vda:thin=a,cluster=other": {failure.NotFound, "cluster other"},
		"vda:thin=a;vdb:thin=a":    {failure.Conflict, "disks vda and vdb are both volume san/a"},
		"vda:thin=a;vdb:thin=a,cluster=san": {
			failure.Conflict, "disks vda and vdb are both volume san/a",
		},
	} {
		t.Run(text, func(t *testing.T) {
			written, err := bindings.Parse("--thin", text, bindings.Flag)
			if err == nil {
				_, err = w.Rewrite(volumeDomain(t, owner, "file /srv/none-a", "file /srv/none-b"), written)
			}
			if failure.KindOf(err) != want.kind || !strings.Contains(failure.Line(err), want.word) {
				t.Errorf("%v", err)
			}
		})
	}
	doc := thinDomain(t, w, owner, "vda:thin=a")
	c.held["a"] = stranger
	_, _, err := startVolumes(t, w.Host, doc)
	refused(t, err, failure.Conflict, "disk vda: volume a: domain "+stranger+" has it", "shut that domain down")
	if c.held["a"] != stranger {
		t.Errorf("%v", c.held)
	}
	plan, err := bindings.Simulate(t.Context(), w.Host, "restore", doc.Bytes(), nil)
	if err != nil {
		t.Fatal(err)
	}
	refused(t, plan.Veto, failure.Conflict, "domain "+stranger+" has it")
	d, bound, err := w.Start(t.Context(), doc, nil)
	if err != nil {
		t.Fatal(err)
	}
	refused(t, w.Relink(t.Context(), d, bound, 0), failure.Conflict, "domain "+stranger+" has it")

	w.Thin = nil
	_, _, err = startVolumes(t, w.Host, doc)
	if failure.KindOf(err) != failure.Precondition {
		t.Errorf("%v", err)
	}
}
