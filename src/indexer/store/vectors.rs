//! Vectors: one byte a dimension in memory for an exact scan, and the full numbers on disk for the final order.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::StoreError;
use crate::indexer::embed::dot;

/// How many more than asked for are compared by their full numbers: coarse ranks are off by a few places.
const RESCORE_FACTOR: usize = 2;
const RESCORE_MORE: usize = 50;

/// The vectors of a generation, by position of their chunk.
#[derive(Debug)]
pub struct Vectors {
    path: PathBuf,
    file: File,
    dimensions: usize,
    codes: Vec<i8>,
    scales: Vec<f32>,
}

pub(super) fn write(path: &Path, vectors: &[&[f32]]) -> Result<(), StoreError> {
    let write = || -> std::io::Result<()> {
        let mut out = BufWriter::new(File::create(path)?);
        for vector in vectors {
            for x in *vector {
                out.write_all(&x.to_le_bytes())?;
            }
        }
        out.flush()
    };
    write().map_err(StoreError::io(path))
}

impl Vectors {
    pub(super) fn open(
        path: &Path,
        count: u64,
        dimensions: usize,
        mut visit: impl FnMut(&[f32]),
    ) -> Result<Self, StoreError> {
        let folder = path.parent().unwrap_or(path);
        let count = usize::try_from(count).map_err(|_| StoreError::corrupt(folder, "it has too many chunks"))?;
        let file = File::open(path).map_err(StoreError::io(path))?;
        let length = file.metadata().map_err(StoreError::io(path))?.len();
        if Some(length) != (count as u64).checked_mul(dimensions as u64 * 4) {
            return Err(StoreError::corrupt(folder, "its vectors are not as many as its chunks"));
        }
        let mut codes = Vec::with_capacity(count * dimensions);
        let mut scales = Vec::with_capacity(count);
        let mut reader = BufReader::with_capacity(1 << 20, &file);
        let mut bytes = vec![0; dimensions * 4];
        for _ in 0..count {
            reader.read_exact(&mut bytes).map_err(StoreError::io(path))?;
            let vector = numbers(&bytes);
            visit(&vector);
            scales.push(quantise(&vector, &mut codes));
        }
        Ok(Self { path: path.to_owned(), file, dimensions, codes, scales })
    }

    /// Length of a vector.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Positions and similarities of the `count` chunks nearest to a question, the nearest first, the earlier one
    /// first when they are equal. Looks at every allowed chunk.
    ///
    /// # Errors
    /// When a vector cannot be read.
    pub fn nearest(
        &self,
        question: &[f32],
        count: usize,
        allowed: impl Fn(u32) -> bool,
    ) -> Result<Vec<(u32, f32)>, StoreError> {
        let mut code = Vec::with_capacity(question.len());
        quantise(question, &mut code);
        let mut coarse: Vec<(f32, u32)> = self
            .codes
            .chunks_exact(self.dimensions.max(1))
            .zip(&self.scales)
            .zip(0u32..)
            .filter(|(_, position)| allowed(*position))
            .map(|((codes, scale), position)| (dot_codes(codes, &code) as f32 * scale, position))
            .collect();
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        let rescored = count.saturating_mul(RESCORE_FACTOR).saturating_add(RESCORE_MORE);
        if coarse.len() > rescored {
            coarse.select_nth_unstable_by(rescored, order);
            coarse.truncate(rescored);
        }
        for (score, position) in &mut coarse {
            *score = self.similarity(*position, question)?;
        }
        coarse.sort_by(order);
        coarse.truncate(count);
        Ok(coarse.into_iter().map(|(score, position)| (position, score)).collect())
    }

    /// Cosine similarity of a chunk and a question; both have length 1.
    ///
    /// # Errors
    /// When the vector cannot be read.
    pub fn similarity(&self, position: u32, question: &[f32]) -> Result<f32, StoreError> {
        let mut bytes = vec![0; self.dimensions * 4];
        let offset = u64::from(position) * bytes.len() as u64;
        self.file.read_exact_at(&mut bytes, offset).map_err(StoreError::io(&self.path))?;
        Ok(dot(&numbers(&bytes), question).clamp(-1.0, 1.0))
    }
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect()
}

/// Appends a vector as bytes and gives the factor that makes numbers of them again.
fn quantise(vector: &[f32], codes: &mut Vec<i8>) -> f32 {
    let largest = vector.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let scale = if largest > 0.0 { largest / 127.0 } else { 1.0 };
    codes.extend(vector.iter().map(|x| (x / scale).round() as i8));
    scale
}

fn dot_codes(a: &[i8], b: &[i8]) -> i32 {
    a.iter().zip(b).map(|(x, y)| i32::from(i16::from(*x) * i16::from(*y))).sum()
}
