// SPDX-License-Identifier: Apache-2.0

package member_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"diskhook/storage/failure"
	"diskhook/storage/thin/member"
)

var attachOptions member.AttachOptions

// A volume is written on one host, goes to another with everything, and comes back,
// while a guest of another volume goes on.
func TestVolumeMoves(t *testing.T) {
	w := newWorld(t, t.TempDir(), 2)
	one, two := w.hosts[0], w.hosts[1]
	one.start()
	two.start()
	w.check()
	stays, moves := w.create(one), w.create(one)
	one.request(20)
	two.request(10)
	w.check()
	one.attach(stays)
	one.write(stays, 1)
	w.check()
	one.attach(moves)
	w.check()
	for v := range uint64(5) {
		one.write(moves, v)
		one.write(stays, v)
	}
	one.discard(moves, 3)
	w.check()
	one.detach(moves)
	w.check()
	one.write(stays, 7)
	two.attach(moves)
	w.check()
	two.reads(moves)
	if _, _, err := one.Mapping(t.Context(), moves); !errors.Is(err, failure.Conflict) || !strings.Contains(err.Error(), "it is at host ") {
		t.Errorf("what another host's volume maps: %v", err)
	}
	two.write(moves, 0)
	two.write(moves, 6)
	w.check()
	two.detach(moves)
	one.attach(moves)
	one.reads(moves)
	one.reads(stays)
	one.write(moves, 6)
	w.check()
	if to, err := os.Readlink(one.Path(moves)); err != nil || to == "" {
		t.Errorf("%s, %v", to, err)
	}
	if _, err := os.Lstat(two.Path(moves)); err == nil {
		t.Error("the other host has a link still")
	}
}
