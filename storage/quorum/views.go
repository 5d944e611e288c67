// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"time"

	"diskhook/storage/nbd"
)

// readViews reads the same piece of several replicas side by side.
func readViews(ctx context.Context, clients map[string]*nbd.Client, at int64, length int, most time.Duration) (map[string][]byte, map[string]error) {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	var mu sync.Mutex
	var pending sync.WaitGroup
	views, failed := map[string][]byte{}, map[string]error{}
	for id, client := range clients {
		pending.Go(func() {
			data, err := client.ReadAt(ctx, at, length)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed[id] = err
				return
			}
			views[id] = data
		})
	}
	pending.Wait()
	return views, failed
}

// piece is what a vote decided of a part of what was read.
type piece struct {
	at, length int    // bytes, from the beginning of what was read
	data       []byte // what the majority has; nil: there is none
}

// vote compares pieces of equal length, sector by sector. It returns the parts
// that are not the same everywhere, and the ids of those that the majority has
// outvoted in any. A guest's write that was cut short by a crash may have left
// three versions of a request, but of a sector there are only two, the old and
// the new one; so sectors find a majority where QEMU, which compares whole
// requests, finds none.
func vote(views map[string][]byte, threshold int) (differ []piece, outvoted []string) {
	ids := make([]string, 0, len(views))
	for id := range views {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	if len(ids) == 0 || same(views, ids) && len(ids) >= threshold {
		return nil, nil
	}
	bad := map[string]bool{}
	total := len(views[ids[0]])
	for at := 0; at < total; at += sector {
		end := min(at+sector, total)
		winner, equal := elect(views, ids, at, end, threshold)
		if equal {
			continue
		}
		for _, id := range ids {
			if winner != nil && !bytes.Equal(views[id][at:end], winner) {
				bad[id] = true
			}
		}
		differ = appendPiece(differ, at, end, winner)
	}
	for _, id := range ids {
		if bad[id] {
			outvoted = append(outvoted, id)
		}
	}
	return differ, outvoted
}

func same(views map[string][]byte, ids []string) bool {
	for _, id := range ids[1:] {
		if !bytes.Equal(views[ids[0]], views[id]) {
			return false
		}
	}
	return true
}

// elect returns what at least threshold replicas have, and more than have
// anything else; equal says that all have it.
func elect(views map[string][]byte, ids []string, at, end, threshold int) (winner []byte, equal bool) {
	most, tie := 0, false
	for _, id := range ids {
		votes := 0
		for _, other := range ids {
			if bytes.Equal(views[id][at:end], views[other][at:end]) {
				votes++
			}
		}
		switch one := views[id][at:end]; {
		case votes > most:
			most, winner, tie = votes, one, false
		case votes == most && !bytes.Equal(one, winner):
			tie = true
		}
	}
	if tie || most < threshold {
		return nil, false
	}
	return winner, most == len(ids)
}

// appendPiece joins neighbours of the same kind.
func appendPiece(pieces []piece, at, end int, winner []byte) []piece {
	if n := len(pieces) - 1; n >= 0 && pieces[n].at+pieces[n].length == at && (pieces[n].data == nil) == (winner == nil) {
		pieces[n].length += end - at
		if winner != nil {
			pieces[n].data = append(pieces[n].data, winner...)
		}
		return pieces
	}
	return append(pieces, piece{at, end - at, slices.Clone(winner)})
}
