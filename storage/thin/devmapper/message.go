// SPDX-License-Identifier: Apache-2.0

package devmapper

import "fmt"

// Message is what a pool can be told. Each is one transaction.
type Message string

// MaxID is the highest number of a thin device. 0 is one, too.
const MaxID = 1<<24 - 1

// CreateThin makes an empty thin device; EEXIST if there is one.
func CreateThin(id uint32) Message { return Message(fmt.Sprintf("create_thin %d", id)) }

// CreateSnap makes a snapshot of a device, which has to be suspended if it is
// active. All blocks of both are shared from then on.
func CreateSnap(id, origin uint32) Message {
	return Message(fmt.Sprintf("create_snap %d %d", id, origin))
}

// Delete deletes a device; EBUSY if it is active. Its blocks become free here.
func Delete(id uint32) Message { return Message(fmt.Sprintf("delete %d", id)) }

// SetTransaction changes the transaction number from one to another; EINVAL if it
// is not the one.
func SetTransaction(from, to uint64) Message {
	return Message(fmt.Sprintf("set_transaction_id %d %d", from, to))
}

// ReserveSnapshot commits and holds the metadata as they are, so that they can be
// read from their device at the held root. There is one at a time; EBUSY. Blocks
// that it maps do not become free before it is released.
func ReserveSnapshot() Message { return "reserve_metadata_snap" }

// ReleaseSnapshot lets them go; EINVAL if there are none.
func ReleaseSnapshot() Message { return "release_metadata_snap" }
