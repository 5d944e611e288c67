// SPDX-License-Identifier: Apache-2.0

package quorum

import (
	"context"

	"diskhook/storage/failure"
	"diskhook/storage/imagecheck"
	"diskhook/storage/progress"
)

// Building is what to build.
type Building struct {
	Name string
	// Replicas are as ParseReplica gives them. What does not exist is made, in
	// the layer's format; devices and NBD exports must exist.
	Replicas  []Layer
	Threshold int
	// ReadPattern "" is Vote.
	ReadPattern   string
	AllowMinority bool
	// From is the chain to copy, top first; none: the disk is Size bytes of
	// zeros.
	From []imagecheck.Layer
	Size int64 // without From; else 0
	// Overwrite: images that exist, and devices with something on them, may be
	// overwritten.
	Overwrite bool
	// Adopt takes images that exist as they are, once they are found to be
	// equal. There is no From then.
	Adopt    bool
	Progress progress.Func
}

// Build makes a set.
func (s *Service) Build(context.Context, Building) (Set, error) {
	return Set{}, failure.New(failure.Precondition, "not yet")
}

// Status is what is known without asking the daemon.
type Status struct {
	Set Set
	// Served: somebody holds the set's lock, a daemon or a verb.
	Served   bool
	Decision Decision
	// Veto is Decision.Veto in words, with the way out.
	Veto     string
	Hint     string
	Replicas []ReplicaStatus
}

// ReplicaStatus is one replica.
type ReplicaStatus struct {
	ID, Path string
	Votes    bool   // it is in Decision.Open
	Why      string // it does not
	Stale    bool   // a resync brings it up to date
	Mark     *Mark
}

// Status looks at a set without changing anything.
func (s *Service) Status(context.Context, string) (Status, error) {
	return Status{}, failure.New(failure.Precondition, "not yet")
}

// Range is a piece of the disk, in bytes.
type Range struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// Verification is what a comparison of all replicas found.
type Verification struct {
	Set  string `json:"set"`
	Size int64  `json:"size"`
	Read int64  `json:"read"` // bytes that were read of each replica
	// Differs are, by replica, the ranges in which it is not like the majority.
	Differs map[string][]Range `json:"differs"`
	// NoMajority are the ranges in which too few replicas agree.
	NoMajority []Range `json:"no_majority"`
	// Missing are replicas that could not be read, by id.
	Missing map[string]string `json:"missing"`
}

// Equal says that all replicas were read and are the same.
func (v Verification) Equal() bool {
	return len(v.Differs) == 0 && len(v.NoMajority) == 0 && len(v.Missing) == 0
}

// Verify compares all replicas of a set that is not served.
func (s *Service) Verify(context.Context, string, progress.Func) (Verification, error) {
	return Verification{}, failure.New(failure.Precondition, "not yet")
}

// Resyncing is how to resync.
type Resyncing struct {
	From     string // the replica to believe; "" is the majority
	Progress progress.Func
}

// Resync makes all replicas of a set that is not served equal.
func (s *Service) Resync(context.Context, string, Resyncing) (Verification, error) {
	return Verification{}, failure.New(failure.Precondition, "not yet")
}

// Replacing is what to exchange.
type Replacing struct {
	Old       string // id
	New       Layer  // as of Building.Replicas
	Overwrite bool
	Progress  progress.Func
}

// Replace takes a replica out of a set that is not served and builds another
// from the majority. It returns the new id.
func (s *Service) Replace(context.Context, string, Replacing) (string, error) {
	return "", failure.New(failure.Precondition, "not yet")
}

// Remove takes a set's definition and marks away, and its images only when told.
func (s *Service) Remove(_ context.Context, name string, deleteImages bool) error {
	return failure.New(failure.Precondition, "not yet")
}
