// SPDX-License-Identifier: Apache-2.0

package cluster

import "diskhook/storage/thin/layout"

// Bounds of Quantum.
const (
	leastQuantum = 1 << 30 // bytes
	// mostShare is the part of all blocks that a host asks for at a time at most.
	mostShare = 16
)

// Quantum is how many blocks a host asks for at a time, and keeps free: what it can
// write while the cluster gets another master. It is 1 GiB or a hundredth of a
// member's share, whichever is more, and in a small cluster a sixteenth of all.
func Quantum(m layout.Map) uint64 {
	var members uint64
	for _, h := range m.Hosts {
		if h.State == layout.Member {
			members++
		}
	}
	blocks := max(leastQuantum/m.BlockSize, m.Blocks/100/max(members, 1))
	return max(min(blocks, m.Blocks/mostShare), 1)
}

// BlocksFor is how many blocks hold so many bytes.
func BlocksFor(m layout.Map, bytes uint64) uint64 {
	blocks := bytes / m.BlockSize
	if bytes%m.BlockSize != 0 {
		blocks++
	}
	return blocks
}
