// SPDX-License-Identifier: Apache-2.0

package transfer

import "io"

// ReadThrough lets the native copy read its layers through wrap.
func (e *Engine) ReadThrough(wrap func(io.ReaderAt) io.ReaderAt) { e.wrap = wrap }

// BeforeWrite calls f before each write of the native copy.
func (e *Engine) BeforeWrite(f func()) { e.before = f }
