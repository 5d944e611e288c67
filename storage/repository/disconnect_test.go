// SPDX-License-Identifier: Apache-2.0

package repository_test

import (
	"context"
	"testing"
	"time"

	"diskhook/storage/repository"
	"diskhook/storage/repository/format"
	"diskhook/storage/repository/format/localfs"
)

// listened does something once pins were listed.
type listened struct {
	localfs.Format
	then func()
}

func (l *listened) Open(ctx context.Context, parameters map[string]string) (format.Place, error) {
	p, err := l.Format.Open(ctx, parameters)
	return &listenedPlace{p, l.then}, err
}

type listenedPlace struct {
	format.Place
	then func()
}

func (p *listenedPlace) List(ctx context.Context, kind format.Kind) ([]string, error) {
	ids, err := p.Place.List(ctx, kind)
	if kind == format.Pin {
		p.then()
	}
	return ids, err
}

// Who prepares an image while its repository is being disconnected either has it in a
// repository that stays, or has not got it.
func TestNoImageIsPreparedInWhatIsDisconnected(t *testing.T) {
	w := newWorld(t, "localfs-1.0")
	ctx := t.Context()
	disk, _ := w.diskOnBase()
	var prepared error
	hasty := w.on("h1")
	hasty.Formats = []format.Format{&listened{then: func() {
		some, cancel := context.WithTimeout(ctx, 3*time.Second) // it may have to wait for us
		defer cancel()
		_, prepared = w.on("h1").PrepareImage(some, "a", disk, repository.Preparing{Holder: "vm", Write: true})
	}}}
	err := hasty.DisconnectStorageRepository(ctx, "a", repository.Disconnect{})
	if err == nil && prepared == nil {
		t.Fatal("a guest has an image of a repository that is not connected")
	}
	if err != nil && prepared != nil {
		t.Errorf("neither was done: %v; %v", err, prepared)
	}
	_, err = w.on("h1").PrepareImage(ctx, "a", disk, repository.Preparing{Holder: "vm"})
	refused(t, err, repository.ErrNotConnected)
	must(t, w.on("h1").ConnectStorageRepository(ctx, "a", w.Format, w.parameters("a")))
	info, err := w.on("h1").GetImage(ctx, "a", disk)
	must(t, err)
	if len(info.Holders) > 0 {
		t.Errorf("held by %q", info.Holders)
	}
}
