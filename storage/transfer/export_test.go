// SPDX-License-Identifier: Apache-2.0

package transfer

import (
	"context"
	"io"
	"os"
)

// ReadThrough lets the native copy read its layers through wrap.
func (e *Engine) ReadThrough(wrap func(io.ReaderAt) io.ReaderAt) { e.wrap = wrap }

// BeforeWrite calls f before each write of the native copy.
func (e *Engine) BeforeWrite(f func()) { e.before = f }

// DigestOf is the digest of the first size bytes of a target.
func DigestOf(ctx context.Context, target Target, size int64) (string, error) {
	return digest(ctx, target, size)
}

// DataIn counts what of the first size bytes of a file is data.
func DataIn(f *os.File, size int64) int64 { return dataIn(f, span{0, size}) }
