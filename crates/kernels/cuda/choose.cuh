// One token per row of logits, by what the row asks for: greedy, or a draw after temperature, top_k and top_p, with penalties. The
// rules, the generator and the order of a draw are those of src/sample.rs, whose tests say what they mean; a row's choice hangs
// on its logits, its settings, its seed and its place alone.
//
// Weights have the same bits as on the CPU (the same exponential). Sums of weights are whole numbers of 2^-46, so they are exact
// in any order and blocks need no fixed one; against the CPU's f64 sums that moves a border by less than 1e-9 of the mass.
// Nothing is sorted: "the heaviest tokens that hold this much" is found digit by digit of the weights' bits, ten at a time, in a
// histogram, and so is the token that a draw falls on.
//
// Floors on an H100, 128256 logits: 0.5 MB a row and pass, from the L2 cache to one multiprocessor (a row is one block's), 5 us
// at 100 GB/s; greedy takes one pass, a draw three. Prediction, not a measurement: 8 us greedy, 30 us a draw; a flat
// distribution of which more than 4096 tokens stay in is slower, 100 us and more.
#pragma once

#include "common.cuh"

constexpr int CHOOSE_THREADS = 1024;
constexpr int CHOOSE_WARPS = CHOOSE_THREADS / 32;
/// Candidates kept at hand; more are read again from the logits.
constexpr int CANDIDATES = 2048;
constexpr int DIGIT_BITS = 10;
constexpr int BINS = 1 << DIGIT_BITS;
static_assert(BINS == CHOOSE_THREADS, "a thread per bin");
/// The smallest weight that counts.
constexpr float LIGHTEST = 1.17549435e-38f;
constexpr uint32_t IN_PROMPT = 0x80000000u;

using Mass = unsigned long long;

/// What a row asks for. Mirrors `Ask` in src/cuda/params.rs.
struct Ask {
    uint64_t seed;
    /// How many tokens the prediction has drawn before.
    uint64_t place;
    /// 1 is off.
    double top_p;
    /// 1 / temperature; 0 is greedy; below 0 the row is not in use.
    float by;
    float presence;
    float frequency;
    /// 1 is off.
    float repetition;
    /// 0 is off.
    int32_t top_k;
    /// The row of `counts` that is this prediction's; below 0 it has no penalties.
    int32_t counts;
    /// Tokens that may not be chosen: so many of `bans`, from the first.
    uint32_t first_ban;
    uint32_t ban_count;
};

/// Mirrors `Choose` in src/cuda/params.rs.
struct Choose {
    /// [rows, vocabulary], scratch afterwards.
    float* logits;
    const Ask* asks;
    /// [.., vocabulary]: how often a token was generated, and IN_PROMPT. Grows by the choice.
    uint32_t* counts;
    const uint32_t* bans;
    /// [rows]; NOBODY where the logits held no finite greatest value.
    uint32_t* chosen;
    /// At most 2^20.
    int32_t vocabulary;
    int32_t rows;
};

/// e^x as src/math.rs has it, bit for bit.
DEVICE float same_exp(float x) {
    const float round = 12582912.0f;
    float held = x > 88.0f ? 88.0f : x;
    float shifted = fmaf(held, 1.44269504f, round);
    float n = shifted - round;
    float r = fmaf(n, 2.1219444e-4f, fmaf(n, -0.6933594f, held));
    float sum = 1.0f / 5040.0f;
    sum = fmaf(r, sum, 1.0f / 720.0f);
    sum = fmaf(r, sum, 1.0f / 120.0f);
    sum = fmaf(r, sum, 1.0f / 24.0f);
    sum = fmaf(r, sum, 1.0f / 6.0f);
    sum = fmaf(r, sum, 0.5f);
    sum = fmaf(r, sum, 1.0f);
    sum = fmaf(r, sum, 1.0f);
    float power = __uint_as_float((__float_as_uint(shifted) << 23) + 0x3f800000u);
    return x < -87.0f ? 0.0f : sum * power;
}

/// A weight, at most 1, in units of 2^-46.
DEVICE Mass mass_of(float weight) { return Mass(double(weight) * 70368744177664.0); }

DEVICE uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
}

/// In [0, 1), for one place of one seed.
DEVICE double uniform(uint64_t seed, uint64_t place) {
    return double(mix(mix(seed + 0x9E3779B97F4A7C15ull) ^ (place * 0xD1B54A32D192ED03ull)) >> 11) / 9007199254740992.0;
}

/// What a row's block shares.
struct Choosing {
    Mass bins[BINS];
    Mass warps[CHOOSE_WARPS];
    float weights[CANDIDATES];
    uint32_t ids[CANDIDATES];
    float floats[CHOOSE_WARPS];
    uint32_t places[CHOOSE_WARPS];
    uint32_t count;
    uint32_t digit;
    Mass rest;
};

DEVICE Mass warp_mass(Mass v) {
    for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(FULL, v, distance);
    return v;
}

/// The sum over all threads, to all of them.
DEVICE Mass block_mass(Choosing& s, Mass v) {
    v = warp_mass(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) s.warps[threadIdx.x / 32] = v;
    __syncthreads();
    Mass all = 0;
    for (int w = 0; w < CHOOSE_WARPS; w++) all += s.warps[w];
    return all;
}

/// The heavier of two, and of equals the one of the smaller id.
DEVICE bool before(float weight, uint32_t id, float other, uint32_t other_id) {
    return weight > other || (weight == other && id < other_id);
}

/// A token and the mass of those up to it, heaviest first.
struct Border {
    float weight;
    uint32_t id;
};

/// The tokens of a row that are still in: at hand, or the row itself from `bound` on.
struct Tokens {
    const float* row;
    int vocabulary;
    float bound;
    bool at_hand;
    int count;

    template <class Each> DEVICE void each(const Choosing& s, Each each) const {
        int n = at_hand ? count : vocabulary;
        for (int i = threadIdx.x; i < n; i += CHOOSE_THREADS) {
            float w = at_hand ? s.weights[i] : row[i];
            if (w >= bound) each(w, at_hand ? s.ids[i] : uint32_t(i));
        }
    }
};

/// The bin in which the running sum over the bins reaches `goal` (from the last one down where `falling`), which the sum must do;
/// `goal` becomes what is asked of that bin.
DEVICE uint32_t find_bin(Choosing& s, Mass& goal, bool falling) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, bin = falling ? BINS - 1 - threadIdx.x : threadIdx.x;
    __syncthreads();
    Mass mine = s.bins[bin], upto = mine;
    for (int distance = 1; distance < 32; distance *= 2) {
        Mass left = __shfl_up_sync(FULL, upto, distance);
        if (lane >= distance) upto += left;
    }
    if (lane == 31) s.warps[warp] = upto;
    __syncthreads();
    for (int w = 0; w < warp; w++) upto += s.warps[w];
    if (upto >= goal && upto - mine < goal) {
        s.digit = bin;
        s.rest = goal - (upto - mine);
    }
    __syncthreads();
    goal = s.rest;
    return s.digit;
}

/// The token at which the tokens, heaviest first, together reach `goal`: of their mass or, `counting`, of their number.
DEVICE Border find(Choosing& s, const Tokens& tokens, Mass goal, bool counting) {
    uint32_t bits = 0, id = 0;
    // Three digits of the weight, then two of the id among those of that very weight.
    for (int level = 0; level < 5; level++) {
        bool of_weight = level < 3;
        int shift = of_weight ? 20 - 10 * level : 40 - 10 * level;
        __syncthreads();
        s.bins[threadIdx.x] = 0;
        __syncthreads();
        tokens.each(s, [&](float w, uint32_t token) {
            uint32_t key = of_weight ? __float_as_uint(w) : token;
            uint32_t known = of_weight ? bits : id;
            if ((key >> (shift + 10)) != (known >> (shift + 10)) || (!of_weight && __float_as_uint(w) != bits)) return;
            atomicAdd(&s.bins[key >> shift & (BINS - 1)], counting ? Mass(1) : mass_of(w));
        });
        uint32_t digit = find_bin(s, goal, of_weight);
        if (of_weight) bits |= digit << shift;
        else id |= digit << shift;
    }
    return Border{__uint_as_float(bits), id};
}

/// A bound that leaves at least `k` tokens in, and not many more: the k-th of the threads' own heaviest.
DEVICE float bound_of(Choosing& s, float heaviest, int k) {
    for (int i = threadIdx.x; i < CHOOSE_THREADS; i += CHOOSE_THREADS) {
        s.weights[i] = heaviest;
        s.ids[i] = i;
    }
    __syncthreads();
    Tokens own{nullptr, 0, 0.0f, true, CHOOSE_THREADS};
    return find(s, own, Mass(k), true).weight;
}

DEVICE uint32_t draw(Choosing& s, float* row, int n, const Ask& ask, float greatest) {
    Mass mass = 0;
    float heaviest = 0.0f;
    uint32_t positive = 0;
    for (int i = threadIdx.x; i < n; i += CHOOSE_THREADS) {
        float w = same_exp((row[i] - greatest) * ask.by);
        row[i] = w;
        mass += mass_of(w);
        heaviest = fmaxf(heaviest, w);
        positive += w >= LIGHTEST;
    }
    mass = block_mass(s, mass);
    positive = uint32_t(block_mass(s, positive));
    bool top_k = ask.top_k > 0 && uint32_t(ask.top_k) < positive, top_p = ask.top_p < 1.0;
    double u = uniform(ask.seed, ask.place);

    if (!top_k && !top_p) {
        // In the order of ids: every warp has a stretch of them.
        int warp = threadIdx.x / 32, lane = threadIdx.x % 32, stretch = (n + CHOOSE_THREADS - 1) / CHOOSE_THREADS * 32;
        int first = warp * stretch, end = min(n, first + stretch);
        Mass own = 0;
        for (int i = first + lane; i < end; i += 32) own += mass_of(row[i]);
        own = warp_mass(own);
        __syncthreads();
        if (lane == 0) s.warps[warp] = own;
        __syncthreads();
        Mass goal = min(Mass(u * double(mass)) + 1, mass), upto = 0;
        for (int w = 0; w < warp; w++) upto += s.warps[w];
        if (upto < goal && goal <= upto + own) {
            for (int at = first; at < end; at += 32) {
                Mass run = at + lane < end ? mass_of(row[at + lane]) : 0;
                for (int distance = 1; distance < 32; distance *= 2) {
                    Mass left = __shfl_up_sync(FULL, run, distance);
                    if (lane >= distance) run += left;
                }
                uint32_t reached = __ballot_sync(FULL, upto + run >= goal);
                if (reached) {
                    if (lane == 0) s.digit = at + __ffs(reached) - 1;
                    break;
                }
                upto += __shfl_sync(FULL, run, 31);
            }
        }
        __syncthreads();
        return s.digit;
    }

    // Lighter tokens cannot stay in: see src/sample.rs for the second one.
    Tokens tokens{row, n, LIGHTEST, false, 0};
    if (top_k && ask.top_k <= CHOOSE_THREADS) tokens.bound = fmaxf(LIGHTEST, bound_of(s, heaviest, ask.top_k));
    else if (ask.top_k == 0) tokens.bound = fmaxf(LIGHTEST, float(0.5 * (1.0 - ask.top_p) * double(mass) * 0x1p-46 / n));
    __syncthreads();
    if (threadIdx.x == 0) s.count = 0;
    __syncthreads();
    tokens.each(s, [&](float w, uint32_t id) {
        uint32_t at = atomicAdd(&s.count, 1u);
        if (at < CANDIDATES) {
            s.weights[at] = w;
            s.ids[at] = id;
        }
    });
    __syncthreads();
    tokens.count = int(s.count);
    tokens.at_hand = tokens.count <= CANDIDATES;

    auto upto = [&](const Border& border) {
        Mass sum = 0;
        tokens.each(s, [&](float w, uint32_t id) {
            if (!before(border.weight, border.id, w, id)) sum += mass_of(w);
        });
        return block_mass(s, sum);
    };
    if (top_k) mass = upto(find(s, tokens, Mass(ask.top_k), true));
    if (top_p) {
        Mass goal = Mass(ceil(ask.top_p * double(mass)));
        mass = upto(find(s, tokens, min(goal > 0 ? goal : 1, mass), false));
    }
    Mass goal = min(Mass(u * double(mass)) + 1, mass);
    return find(s, tokens, goal, false).id;
}

DEVICE void choose(const Choose& p) {
    __shared__ Choosing s;
    int row = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32, n = p.vocabulary;
    let_next_start();
    wait_for_previous();
    Ask ask = p.asks[row];
    if (ask.by < 0.0f) return;
    float* logits = p.logits + size_t(row) * n;
    uint32_t* counts = ask.counts < 0 ? nullptr : p.counts + size_t(ask.counts) * n;
    for (uint32_t i = threadIdx.x; i < ask.ban_count; i += CHOOSE_THREADS) {
        uint32_t id = p.bans[ask.first_ban + i];
        if (id < uint32_t(n)) logits[id] = -INFINITY;
    }
    __syncthreads();
    float greatest = -INFINITY;
    uint32_t place = NOBODY;
    bool broken = false;
    for (int i = threadIdx.x; i < n; i += CHOOSE_THREADS) {
        float l = logits[i];
        if (counts) {
            uint32_t count = counts[i], times = count & ~IN_PROMPT;
            if (count && ask.repetition != 1.0f) l = l > 0.0f ? l / ask.repetition : l * ask.repetition;
            if (times && (ask.presence != 0.0f || ask.frequency != 0.0f)) l -= __fadd_rn(ask.presence, __fmul_rn(ask.frequency, float(times)));
            logits[i] = l;
        }
        broken |= l != l;
        if (l > greatest) { greatest = l; place = i; }
    }
    for (int distance = 16; distance > 0; distance /= 2) {
        float other = __shfl_xor_sync(FULL, greatest, distance);
        uint32_t other_place = __shfl_xor_sync(FULL, place, distance);
        if (before(other, other_place, greatest, place)) { greatest = other; place = other_place; }
    }
    uint32_t any_broken = __ballot_sync(FULL, broken);
    if (lane == 0) {
        s.floats[warp] = greatest;
        s.places[warp] = place;
        s.warps[warp] = any_broken;
    }
    __syncthreads();
    broken = false;
    for (int w = 0; w < CHOOSE_WARPS; w++) {
        broken |= s.warps[w] != 0;
        if (before(s.floats[w], s.places[w], greatest, place)) { greatest = s.floats[w]; place = s.places[w]; }
    }
    uint32_t token = place;
    // Neither a NaN nor an infinity, of either sign.
    if (broken || !(fabsf(greatest) <= 3.40282347e38f)) token = NOBODY;
    else if (ask.by > 0.0f) token = draw(s, logits, n, ask, greatest);
    if (threadIdx.x == 0) {
        p.chosen[row] = token;
        if (counts && token != NOBODY) counts[token]++;
    }
}
